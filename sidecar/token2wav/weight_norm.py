"""Weight normalisation (arXiv 1602.07868) undone at load: a convolution's stored gain and direction into one weight."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sidecar.errors import CheckpointError

#: PyTorch's names for gain and direction, and its older ones.
_SPELLINGS = (
    ("parametrizations.weight.original0", "parametrizations.weight.original1"),
    ("weight_g", "weight_v"),
)


def fold_weight_norm(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every pair of gain g and direction v as one: weight = g v / |v|, the norm over every axis but the first.

    Both of PyTorch's spellings of the pair are taken. Half a pair is left as it is, for whoever checks the names.

    Raises:
        CheckpointError: a pair that does not fit together, points nowhere, or stands beside the same weight; names it.
    """
    folded = dict(tensors)
    for gain_name, direction_name in _SPELLINGS:
        for name in tensors:
            layer = name.removesuffix(gain_name)
            if layer == name or layer + direction_name not in folded:
                continue
            if layer + "weight" in folded:
                raise CheckpointError(f"{layer}weight is there twice: also as {name}")
            gain, direction = folded.pop(name), folded.pop(layer + direction_name)
            _check_gain(name, gain, direction)
            folded[layer + "weight"] = direction * (gain / _norm(layer + direction_name, direction))
    return folded


def _check_gain(name: str, gain: Tensor, direction: Tensor) -> None:
    expected = [*direction.shape[:1], *[1] * (direction.dim() - 1)]
    if direction.dim() < 2 or list(gain.shape) != expected:
        raise CheckpointError(
            f"{name} is {list(gain.shape)} and should be {expected}, for a direction of {list(direction.shape)}"
        )


def _norm(name: str, direction: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(direction, dim=tuple(range(1, direction.dim())), keepdim=True)
    if not norm.all():
        row = int((norm.flatten() == 0).nonzero()[0])
        raise CheckpointError(f"{name} is all zeros in row {row}, which has no direction; the file is damaged")
    return norm
