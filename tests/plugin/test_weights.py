"""A checkpoint that lacks a tensor is refused, not served with whatever the memory held."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from golden_folders import DATA
from safetensors.torch import load_file, save_file
from torch import nn
from vllm_server import serving

from step_audio_vllm.config import StepAudio2EncoderConfig
from step_audio_vllm.encoder import Adapter, AudioEncoder

pytestmark = pytest.mark.vllm

CHECKPOINT = DATA / "llm" / "checkpoint"


def test_the_names_that_are_asked_for_are_those_of_the_checkpoint() -> None:
    from step_audio_vllm.model import StepAudio2ForCausalLM, checkpoint_names  # noqa: PLC0415 - brings vLLM

    tensors = set(load_file(CHECKPOINT / "model.safetensors"))
    inside = {name if name.startswith(("encoder.", "adapter.")) else f"language_model.{name}" for name in tensors}
    for fused, parts in StepAudio2ForCausalLM.packed_modules_mapping.items():
        for part in parts:
            inside = {name.replace(f".{part}.", f".{fused}.") for name in inside}
    assert len(inside) < len(tensors)
    assert checkpoint_names(inside, StepAudio2ForCausalLM.packed_modules_mapping) == tensors


def test_a_checkpoint_without_one_part_of_a_fused_layer_does_not_start(tmp_path: Path) -> None:
    for file in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(CHECKPOINT / file, tmp_path)
    tensors = load_file(CHECKPOINT / "model.safetensors")
    lost = "model.layers.1.self_attn.k_proj.weight"
    del tensors[lost]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RuntimeError, match=f"no tensor for 1 parameters, among them {lost}"), serving(tmp_path):
        pass


def test_under_a_quantization_the_parts_that_are_not_quantized_are_still_asked_for() -> None:
    from step_audio_vllm.model import StepAudio2ForCausalLM  # noqa: PLC0415 - brings vLLM

    config = StepAudio2EncoderConfig(n_audio_ctx=64, n_audio_state=24, n_audio_head=3, n_audio_layer=1, llm_dim=40)
    model = object.__new__(StepAudio2ForCausalLM)  # with a backbone whose parameters no checkpoint has
    nn.Module.__init__(model)
    model.encoder, model.adapter = AudioEncoder(config), Adapter(config)
    model.language_model = nn.Module()
    model.language_model.scale = nn.Parameter(torch.ones(1))
    model.quantized = True
    ours = {name: torch.zeros_like(tensor) for name, tensor in model.state_dict().items() if "scale" not in name}
    model.load_weights(ours.items())
    lost = "adapter.linear1.bias"
    del ours[lost]
    with pytest.raises(ValueError, match=f"no tensor for 1 parameters, among them {lost}"):
        model.load_weights(ours.items())
