"""A LoRA adapter as PEFT saves it, for a checkpoint's backbone, and the same weights merged by hand."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

RANK, ALPHA = 4, 8
TARGETS = ("q_proj", "v_proj", "gate_proj", "up_proj", "down_proj")


def backbone(checkpoint: Path) -> dict[str, Tensor]:
    """The checkpoint's tensors without those of the audio encoder and adaptor, in float32."""
    tensors = load_file(checkpoint / "model.safetensors")
    return {name: tensor.float() for name, tensor in tensors.items() if name.startswith(("model.", "lm_head."))}


def write_adapter(folder: Path, weights: dict[str, Tensor], *, scale: float) -> None:
    """Write `adapter_config.json` and `adapter_model.safetensors`; with `scale` 0 the adapter changes nothing."""
    folder.mkdir()
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "target_modules": list(TARGETS), "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    drawn = torch.Generator().manual_seed(0)
    tensors: dict[str, Tensor] = {}
    for name, weight in weights.items():
        module = name.removesuffix(".weight")
        if module.endswith(TARGETS):
            rows, columns = weight.shape
            down, up = torch.randn(RANK, columns, generator=drawn), torch.randn(rows, RANK, generator=drawn)
            tensors[f"base_model.model.{module}.lora_A.weight"] = down
            tensors[f"base_model.model.{module}.lora_B.weight"] = scale * up
    save_file(tensors, folder / "adapter_model.safetensors")


def merged(weights: dict[str, Tensor], adapter: Path) -> dict[str, Tensor]:
    """W + (alpha / r) B A for every weight that the adapter names (arXiv 2106.09685)."""
    tensors = load_file(adapter / "adapter_model.safetensors")
    changed = dict(weights)
    for name, weight in weights.items():
        lora = f"base_model.model.{name.removesuffix('.weight')}.lora"
        if f"{lora}_A.weight" in tensors:
            changed[name] = weight + ALPHA / RANK * tensors[f"{lora}_B.weight"] @ tensors[f"{lora}_A.weight"]
    return changed
