"""The synthetic checkpoint's files: the real format, the same bytes every time, and never half written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from transformers import AutoTokenizer

from step_audio_vllm import synthetic
from step_audio_vllm.synthetic_safetensors import bfloat16_file
from step_audio_vllm.synthetic_script import REFRAIN, SPOKEN_WORDS, WRITTEN_WORDS, all_pieces, pieces
from step_audio_vllm.synthetic_tokenizer import token_ids, vocabulary_name
from step_audio_vllm.synthetic_weights import ModelSize, model_tensors
from step_audio_vllm.vocabulary import END_OF_TEXT, SPEECH_PAD_CODE, Vocabulary, speech_token_name

RECORDED = Path(__file__).parents[1] / "golden/data/llm/checkpoint"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synthetic") / "tiny"
    assert synthetic.write_checkpoint(folder, "tiny")
    return folder


@pytest.fixture(scope="module")
def tokenizer(tiny: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def shapes(file: Path) -> dict[str, tuple[list[int], str]]:
    with safe_open(file, "pt") as opened:
        parts = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118  no mapping
        return {name: (part.get_shape(), part.get_dtype()) for name, part in parts.items()}


def test_the_same_seed_gives_the_same_bytes(tiny: Path, tmp_path: Path) -> None:
    synthetic.write_checkpoint(tmp_path, "tiny")
    assert contents(tmp_path) == contents(tiny)


def test_another_seed_gives_other_weights_and_the_same_tokenizer(tiny: Path, tmp_path: Path) -> None:
    synthetic.write_checkpoint(tmp_path, "tiny", seed=1)
    first, second = contents(tiny), contents(tmp_path)
    assert second["model.safetensors"] != first["model.safetensors"]
    assert second["tokenizer.json"] == first["tokenizer.json"]


def test_a_complete_folder_is_left_as_it_is(tiny: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in tiny.iterdir()}
    assert not synthetic.write_checkpoint(tiny, "tiny")
    assert {path.name: path.stat().st_mtime_ns for path in tiny.iterdir()} == before


def test_a_folder_that_was_left_half_written_is_written_again(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(*_: object) -> dict[str, Any]:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(synthetic, "bfloat16_file", breaks)
        synthetic.write_checkpoint(tmp_path, "tiny")
    assert synthetic.write_checkpoint(tmp_path, "tiny")
    assert contents(tmp_path) == contents(tiny)


def test_a_real_checkpoint_is_never_written_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert synthetic.main([str(tmp_path), "--size", "tiny"]) == 1
    assert "not synthetic" in caplog.text
    assert contents(tmp_path) == {"config.json": b"{}"}


def test_full_has_the_real_sizes_and_no_weights(tmp_path: Path) -> None:
    synthetic.write_checkpoint(tmp_path, "tiny")
    synthetic.write_checkpoint(tmp_path, "full")
    assert sorted(contents(tmp_path)) == ["config.json", "synthetic.json", "tokenizer.json", "tokenizer_config.json"]
    config = json.loads((tmp_path / "config.json").read_bytes())
    end = token_ids(json.loads((tmp_path / "tokenizer.json").read_bytes()))[END_OF_TEXT]
    assert config.pop("text_config") == {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_attention_groups": 4,
        "num_key_value_heads": 4,
        "vocab_size": 158720,
        "max_position_embeddings": 16384,
        "max_seq_len": 16384,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "rope_scaling": None,
        "torch_dtype": "bfloat16",
        "eos_token_id": end,
        "pad_token_id": end,
    }
    assert config.pop("audio_encoder_config") == {
        "n_mels": 128,
        "n_audio_ctx": 1500,
        "n_audio_state": 1280,
        "n_audio_head": 20,
        "n_audio_layer": 32,
        "n_codebook_size": 4096,
        "llm_dim": 3584,
        "kernel_size": 3,
        "adapter_stride": 2,
    }
    assert config == {
        "architectures": ["StepAudio2ForCausalLM"],
        "model_type": "step_audio_2",
        "torch_dtype": "bfloat16",
    }


def test_tensors_have_the_names_of_a_recorded_checkpoint_and_its_shapes_at_our_width(tiny: Path) -> None:
    ours, recorded = shapes(tiny / "model.safetensors"), shapes(RECORDED / "model.safetensors")
    assert ours.keys() == recorded.keys()
    assert {dtype for _, dtype in ours.values()} == {"BF16"}
    # the two differ in the language model's width alone
    for name in ours:
        if name.startswith("encoder.") or name in {"adapter.conv.weight", "adapter.linear1.weight"}:
            assert ours[name] == recorded[name], name


def test_configuration_has_the_keys_of_a_recorded_checkpoint(tiny: Path) -> None:
    ours, recorded = (json.loads((folder / "config.json").read_bytes()) for folder in (tiny, RECORDED))
    assert ours.keys() == recorded.keys()
    for part in ("text_config", "audio_encoder_config"):
        assert ours[part].keys() == recorded[part].keys()


def test_the_tokenizer_has_every_control_token_and_consecutive_speech_tokens(tokenizer: Any) -> None:
    vocabulary = Vocabulary.from_ids(tokenizer.get_vocab())
    names = ["<|endoftext|>", "<tool_call>", "<|EOT|>", "<audio_start>", "<audio_patch>", "<tts_start>", "<audio_0>"]
    ids = tokenizer.convert_tokens_to_ids(names)
    assert ids == sorted(ids), "the order is the real model's"
    assert tokenizer("<tts_start><audio_17>")["input_ids"] == [vocabulary.tts_start, vocabulary.first_speech_id + 17]
    last = tokenizer.convert_tokens_to_ids(speech_token_name(SPEECH_PAD_CODE))
    assert last == len(tokenizer) - 1 < synthetic.SIZES["tiny"].vocab_size


@pytest.mark.parametrize("text", ["Hello, how are you?", "你好，世界！ 42", "  two\n\nlines\r\n", "naïve ♪ 🙂 <b>"])
def test_text_comes_back_from_its_tokens(tokenizer: Any, text: str) -> None:
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=False) == text


def test_no_text_is_tokenized_to_the_models_own_words(tokenizer: Any) -> None:
    own = {tokenizer.convert_tokens_to_ids(vocabulary_name(piece)) for piece in all_pieces()}
    said = b"".join(choices[0] for choices in pieces(SPOKEN_WORDS + REFRAIN + WRITTEN_WORDS)).decode()
    assert len(own) == len(all_pieces())
    assert own.isdisjoint(tokenizer(said)["input_ids"])


def test_one_character_is_spoken_in_two_tokens() -> None:
    first, second = SPOKEN_WORDS[-2:]
    with pytest.raises(UnicodeDecodeError):
        first.decode()
    assert (first + second).decode() == "♪ "


def test_bfloat16_is_rounded_to_the_nearest(tmp_path: Path) -> None:
    torch, np = pytest.importorskip("torch"), pytest.importorskip("numpy")
    values = np.random.default_rng(0).standard_normal((3, 50), dtype=np.float32) * 100
    (tmp_path / "x.safetensors").write_bytes(bfloat16_file({"x": values, "y": values[:, 0]}))
    with safe_open(tmp_path / "x.safetensors", "pt") as opened:
        assert torch.equal(opened.get_tensor("x"), torch.from_numpy(values).to(torch.bfloat16))
        assert torch.equal(opened.get_tensor("y"), torch.from_numpy(values[:, 0].copy()).to(torch.bfloat16))


def test_a_width_without_room_for_the_script_is_refused() -> None:
    size = ModelSize(
        hidden_size=128,
        intermediate_size=64,
        layers=1,
        heads=2,
        kv_heads=1,
        vocab_size=7424,
        encoder_width=64,
        encoder_heads=4,
        encoder_layers=1,
    )
    with pytest.raises(ValueError, match="hidden size of 128 is too small"):
        model_tensors(size, synthetic.script(), {"<audio_0>": 0}, 0)


def test_help_says_that_the_voice_is_noise(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        synthetic.main(["--help"])
    assert "its voice is noise" in capsys.readouterr().out
