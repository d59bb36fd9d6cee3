"""Tensors out of a file of weights, whatever has happened to it on its way here."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from sidecar.errors import CheckpointError
from sidecar.token2wav.checkpoint_file import require_file

#: Precisions that a weight may be stored in. Smaller ones need scales, which these files do not have.
_PRECISIONS = {torch.float64, torch.float32, torch.float16, torch.bfloat16}

#: The object that torch's unpickler stumbled over, as its message names it.
_REFUSED_OBJECT = re.compile(r"GLOBAL ([\w.]+)")

_REASON_CHARACTERS = 200


def load_tensors(path: Path, *, expected: str = "a flat dict from name to tensor") -> dict[str, Tensor]:
    """Every tensor of a file, by name, in float32 on the CPU: safetensors, or `torch.save` read without its code.

    Args:
        expected: what the file should hold, for the error.

    Raises:
        CheckpointError: no such file, a truncated one, or one that holds anything but a flat dict of finite weights;
            names the tensor.
    """
    require_file(path)
    try:
        tensors: Any = load_file(path) if path.suffix == ".safetensors" else _unpickled(path)
    except Exception as error:  # on damaged files the readers fail with whatever the damage led them to
        raise CheckpointError(
            f"{path} ({path.stat().st_size:,} bytes) cannot be read as weights: {_reason(error)}. "
            f"Expected {expected}; download it again"
        ) from error
    _require_flat(path, tensors)
    for name, value in tensors.items():
        # one by one and in place, so that a file in another precision is not there twice
        tensors[name] = _weight(path, name, value)
    return dict(tensors)


def _unpickled(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def _reason(error: Exception) -> str:
    words = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    if isinstance(error, pickle.UnpicklingError) and (stumbled := _REFUSED_OBJECT.search(words)):
        return f"it holds {stumbled[1]}, and only plain tensors are read (nothing in it was run)"
    if isinstance(error, pickle.UnpicklingError):
        # torch's advice here is to run what the file says
        words = "no pickle of plain tensors"
    return f"it is truncated or of another kind ({words.split('. ')[0][:_REASON_CHARACTERS]})"


def _require_flat(path: Path, tensors: Any) -> None:
    if not isinstance(tensors, dict):
        raise CheckpointError(f"{path} holds a {type(tensors).__name__}; expected a flat dict from name to tensor")
    for name, value in tensors.items():
        if not isinstance(name, str):
            raise CheckpointError(f"{path} has the key {name!r}; expected a flat dict from name to tensor")
        if isinstance(value, dict):
            raise CheckpointError(
                f"{path} holds a dict of its own under {name!r}; expected a flat dict from name to tensor: "
                f"save torch.load(...)[{name!r}] alone"
            )
        if not isinstance(value, Tensor):
            raise CheckpointError(
                f"{path}: {name} is no tensor but {type(value).__name__}; expected a flat dict from name to tensor"
            )


def _weight(path: Path, name: str, value: Tensor) -> Tensor:
    """`value` as a plain float32 tensor."""
    plain = value.layout == torch.strided and value.device.type == "cpu" and value.dtype in _PRECISIONS
    if not plain:
        kind = str(value.dtype if value.device.type == "cpu" else value.device).removeprefix("torch.")
        if value.layout != torch.strided:
            kind = f"sparse {kind}"
        raise CheckpointError(
            f"{path}: {name} is {kind}; weights are dense float32, float16, bfloat16 or float64, not quantized"
        )
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise CheckpointError(f"{path}: {name} claims {list(value.shape)} and has fewer numbers than that")
    weight = value.detach().to(torch.float32).contiguous()
    if weight.numel() and not torch.stack(weight.aminmax()).isfinite().all():
        wrong = int((~weight.isfinite()).sum())
        raise CheckpointError(
            f"{path}: {name} has {wrong:,} of {weight.numel():,} numbers that are not finite; "
            "the file is damaged, or its training diverged"
        )
    return weight
