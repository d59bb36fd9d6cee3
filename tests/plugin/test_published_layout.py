"""The synthetic checkpoint laid out like a published one, served by plain vLLM without a flag of ours.

Published are shards with an index, a config that names remote code and switched-off windows, and the tokenizer's old
files beside the new. No stop string, bias or limit is sent: what is said ends because of the weights and the config.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from requests_with_audio import audio_item, float_wav
from safetensors.torch import load_file, save_file
from vllm_server import VllmServer, serving

from step_audio_vllm import synthetic
from step_audio_vllm.vocabulary import Vocabulary

pytestmark = pytest.mark.vllm

SHARDS = 4
#: Room for 13 chunks of 25 s; fewer tokens in a step than that, so that room for the longest has to be asked for.
CONTEXT = ("--max-model-len", "4096", "--max-num-batched-tokens", "1024")
SPEECH = {"role": "assistant", "content": "<tts_start>"}


def publish(folder: Path) -> None:
    """Change a synthetic checkpoint's files into the published layout."""
    config = json.loads((folder / "config.json").read_bytes())
    config |= {
        "auto_map": {
            "AutoConfig": "configuration_step_audio_2.StepAudio2Config",
            "AutoModelForCausalLM": "modeling_step_audio_2.StepAudio2ForCausalLM",
        },
        "use_sliding_window": False,
        "sliding_window": 2048,
        "max_window_layers": 28,
    }
    (folder / "config.json").write_text(json.dumps(config))
    for code in ("configuration_step_audio_2.py", "modeling_step_audio_2.py"):
        (folder / code).write_text("raise RuntimeError('code of a checkpoint was run')\n")
    shard(folder)
    write_old_tokenizer_files(folder)


def shard(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    places = {name: f"model-{i % SHARDS + 1:05}-of-{SHARDS:05}.safetensors" for i, name in enumerate(tensors)}
    for file in set(places.values()):
        save_file({name: tensors[name] for name in tensors if places[name] == file}, folder / file, {"format": "pt"})
    total_bytes = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total_bytes}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def write_old_tokenizer_files(folder: Path) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_bytes())
    added = tokenizer["added_tokens"]
    files = {
        "vocab.json": tokenizer["model"]["vocab"],
        "added_tokens.json": {token["content"]: token["id"] for token in added},
        "special_tokens_map.json": {
            "additional_special_tokens": [token["content"] for token in added if token["special"]],
            "eos_token": "<|endoftext|>",
            "pad_token": "<|endoftext|>",
        },
        "tokenizer_config.json": {
            **json.loads((folder / "tokenizer_config.json").read_bytes()),
            "added_tokens_decoder": {
                token["id"]: {key: value for key, value in token.items() if key != "id"} for token in added
            },
        },
    }
    for name, contents in files.items():
        (folder / name).write_text(json.dumps(contents, ensure_ascii=False), encoding="utf-8")
    merges = "\n".join(" ".join(pair) for pair in tokenizer["model"]["merges"])
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published") / "model"
    synthetic.write_checkpoint(folder, "tiny")
    publish(folder)
    return folder


@pytest.fixture(scope="module")
def server(published: Path) -> Iterator[VllmServer]:
    with serving(published, *CONTEXT) as running:
        yield running


@pytest.fixture(scope="module")
def vocabulary(published: Path) -> Vocabulary:
    return Vocabulary.from_ids(json.loads((published / "added_tokens.json").read_text(encoding="utf-8")))


def reply(server: VllmServer, *messages: dict[str, Any], **sampling: Any) -> tuple[str, list[int]]:
    """Why it ended, and its ids."""
    opened = messages[-1]["role"] == "assistant"
    body = {"messages": list(messages), "add_generation_prompt": not opened, "continue_final_message": opened}
    answer = server.chat({**body, "return_token_ids": True, **sampling})
    assert answer.status_code == 200, answer.text
    (choice,) = answer.json()["choices"]
    return choice["finish_reason"], choice["token_ids"]


def user(*content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content[0] if isinstance(content[0], str) else list(content)}


def seconds(length_s: float) -> dict[str, Any]:
    noise = np.random.default_rng(0).normal(0, 0.1, round(16000 * length_s)).astype(np.float32)
    return audio_item(float_wav(noise))


@pytest.mark.parametrize("sampling", [{"temperature": 0}, {"temperature": 0.7, "top_p": 0.9, "seed": 1}, {"seed": 2}])
@pytest.mark.parametrize("text", ["Hello", "你好，世界！", "word " * 300])
def test_speech_ends_by_itself_within_ten_seconds(
    text: str, sampling: dict[str, Any], server: VllmServer, vocabulary: Vocabulary
) -> None:
    reason, ids = reply(server, user(text), SPEECH, **sampling)
    codes = [id for id in ids if vocabulary.speech_code(id) is not None]
    assert (reason, ids[-2:]) == ("stop", [vocabulary.tts_end, vocabulary.end_of_turn])
    assert 25 < len(codes) <= 250


@pytest.mark.parametrize("sampling", [{"temperature": 0}, {"temperature": 0.7, "top_p": 0.9, "seed": 1}, {"seed": 2}])
def test_text_ends_by_itself_within_a_hundred_tokens(
    sampling: dict[str, Any], server: VllmServer, vocabulary: Vocabulary
) -> None:
    reason, ids = reply(server, user("Hello"), **sampling)
    assert (reason, ids[-1]) == ("stop", vocabulary.end_of_turn)
    assert 5 < len(ids) <= 100
    assert all(vocabulary.speech_code(id) is None for id in ids)


@pytest.mark.parametrize("length_s", [30, 300, 323])
def test_a_long_recording_is_heard_where_it_fits_into_the_context(length_s: float, server: VllmServer) -> None:
    reason, ids = reply(server, user(seconds(length_s)))
    assert reason == "stop"
    assert len(ids) > 5


def test_a_recording_that_does_not_fit_is_refused_with_its_length(server: VllmServer) -> None:
    answer = server.chat({"messages": [user(seconds(400))]})
    assert answer.status_code == 400, answer.text
    said = answer.json()["error"]["message"]
    assert "a recording of 400.0 s" in said and "--max-model-len 4096" in said
