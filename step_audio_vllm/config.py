"""The checkpoint's config.json as classes that transformers and vLLM understand, without remote code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig, Qwen2Config
from transformers.utils import cached_file

from step_audio_vllm import ARCHITECTURE, MODEL_TYPE
from step_audio_vllm.vocabulary import STOP_NAMES

#: Only in the published text_config: a second name for num_key_value_heads and one for max_position_embeddings.
_PUBLISHER_ONLY = ("num_attention_groups", "max_seq_len")


class StepAudio2EncoderConfig(PretrainedConfig):
    """Sizes of the audio encoder and of the adaptor behind it; the defaults are Step-Audio 2 mini's."""

    model_type = "step_audio_2_encoder"

    def __init__(
        self,
        *,
        n_mels: int = 128,
        n_audio_ctx: int = 1500,
        n_audio_state: int = 1280,
        n_audio_head: int = 20,
        n_audio_layer: int = 32,
        llm_dim: int = 3584,
        kernel_size: int = 3,
        adapter_stride: int = 2,
        **others: Any,
    ) -> None:
        self.n_mels = n_mels
        self.n_audio_ctx = n_audio_ctx
        self.n_audio_state = n_audio_state
        self.n_audio_head = n_audio_head
        self.n_audio_layer = n_audio_layer
        self.llm_dim = llm_dim
        self.kernel_size = kernel_size
        self.adapter_stride = adapter_stride
        super().__init__(**others)


class StepAudio2Config(PretrainedConfig):
    """An audio encoder and a Qwen2 language model.

    `eos_token_id` ends up at the top level with the ids of `<|EOT|>`, `<|endoftext|>` and `<|im_end|>`, looked up by
    name in the tokenizer beside the config: vLLM builds its generation config from there, so that a reply ends at
    the end of the turn without any flag.
    """

    model_type = MODEL_TYPE
    sub_configs = {"text_config": Qwen2Config, "audio_encoder_config": StepAudio2EncoderConfig}  # noqa: RUF012

    def __init__(
        self,
        text_config: dict[str, Any] | Qwen2Config | None = None,
        audio_encoder_config: dict[str, Any] | StepAudio2EncoderConfig | None = None,
        eos_token_id: int | list[int] | None = None,
        **others: Any,
    ) -> None:
        self.text_config = _text_config(text_config)
        self.audio_encoder_config = _encoder_config(audio_encoder_config)
        others.setdefault("architectures", [ARCHITECTURE])
        others["tie_word_embeddings"] = False
        name_or_path = str(others.get("name_or_path") or "")
        super().__init__(**others)
        # after super().__init__: recent transformers drop generation settings that are handed to it
        self.eos_token_id = _stop_ids(name_or_path) or eos_token_id or self.text_config.eos_token_id

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **others: Any) -> StepAudio2Config:
        # AutoConfig hands the name on, this method of transformers does not; without it no stop id can be looked up
        others.setdefault("name_or_path", str(pretrained_model_name_or_path))
        config: StepAudio2Config = super().from_pretrained(pretrained_model_name_or_path, **others)
        return config


def _text_config(given: dict[str, Any] | Qwen2Config | None) -> Qwen2Config:
    if isinstance(given, Qwen2Config):
        return given
    fields = {key: value for key, value in (given or {}).items() if key not in _PUBLISHER_ONLY}
    # what the published file leaves out, and what it must not change
    fields |= {
        "architectures": ["Qwen2ForCausalLM"],
        "tie_word_embeddings": False,
        "use_sliding_window": False,
    }
    return Qwen2Config(**fields)


def _encoder_config(given: dict[str, Any] | StepAudio2EncoderConfig | None) -> StepAudio2EncoderConfig:
    return given if isinstance(given, StepAudio2EncoderConfig) else StepAudio2EncoderConfig(**(given or {}))


def _stop_ids(name_or_path: str) -> list[int]:
    """Ids of the names that end a reply, from the tokenizer of a folder or hub repository; [] where there is none."""
    ids = _added_tokens(name_or_path) if name_or_path else {}
    return [ids[name] for name in STOP_NAMES if name in ids]


def _added_tokens(name_or_path: str) -> dict[str, int]:
    """Added tokens by name. Read from the JSON itself: building a tokenizer for three ids takes seconds."""
    if path := _optional_file(name_or_path, "tokenizer.json"):
        entries = json.loads(path.read_text(encoding="utf-8"))["added_tokens"]
        return {entry["content"]: entry["id"] for entry in entries}
    if path := _optional_file(name_or_path, "added_tokens.json"):
        return dict(json.loads(path.read_text(encoding="utf-8")))
    return {}


def _optional_file(name_or_path: str, file: str) -> Path | None:
    """A file of the folder, or of the repository in the hub's cache (downloaded where that is allowed)."""
    found = cached_file(
        name_or_path,
        file,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return Path(found) if found else None
