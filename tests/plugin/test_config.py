"""config.json in, ordinary configs out, and the ids that end a reply looked up by name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from golden_folders import DATA
from transformers import Qwen2Config

from step_audio_vllm.config import StepAudio2Config, StepAudio2EncoderConfig

CHECKPOINT = DATA / "llm" / "checkpoint"


def names_of(checkpoint: Path) -> dict[str, int]:
    entries = json.loads((checkpoint / "tokenizer.json").read_text(encoding="utf-8"))["added_tokens"]
    return {entry["content"]: entry["id"] for entry in entries}


def test_nested_fields_become_a_qwen2_config_and_an_encoder_config() -> None:
    config = StepAudio2Config.from_pretrained(CHECKPOINT)
    assert isinstance(config.text_config, Qwen2Config)
    assert isinstance(config.audio_encoder_config, StepAudio2EncoderConfig)
    assert (config.text_config.hidden_size, config.audio_encoder_config.n_audio_state) == (128, 64)
    assert config.get_text_config() is config.text_config
    assert config.text_config.hidden_act == "silu"
    assert not config.text_config.tie_word_embeddings and not config.text_config.use_sliding_window


def test_stop_ids_are_looked_up_by_name_in_the_tokenizer_beside_the_config() -> None:
    ids = names_of(CHECKPOINT)
    config = StepAudio2Config.from_pretrained(CHECKPOINT)
    assert set(config.eos_token_id) == {ids["<|EOT|>"], ids["<|endoftext|>"], ids["<|im_end|>"]}
    assert config.to_dict()["eos_token_id"] == config.eos_token_id


def test_a_config_without_a_tokenizer_keeps_the_end_token_it_came_with(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((CHECKPOINT / "config.json").read_text(encoding="utf-8"), encoding="utf-8")
    assert StepAudio2Config.from_pretrained(tmp_path).eos_token_id == 756
    assert StepAudio2Config().text_config.model_type == "qwen2"


def test_a_repository_in_the_hubs_cache_is_read_like_a_folder(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--someone--speech" / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    for file in ("config.json", "tokenizer.json"):
        (snapshot / file).symlink_to(CHECKPOINT / file)
    refs = tmp_path / "models--someone--speech" / "refs"
    refs.mkdir()
    (refs / "main").write_text("0123", encoding="utf-8")
    code = (
        "from step_audio_vllm.config import StepAudio2Config;"
        "print(sorted(StepAudio2Config.from_pretrained('someone/speech').eos_token_id))"
    )
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    ids = names_of(CHECKPOINT)
    assert run.stdout.strip() == str(sorted([ids["<|EOT|>"], ids["<|endoftext|>"], ids["<|im_end|>"]]))
