"""Checkpoint files into modules: strictly, and with one map from the names in the files to ours."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from sidecar.errors import CheckpointError
from sidecar.token2wav.config import FlowConfig
from sidecar.token2wav.flow import FlowNetwork
from sidecar.token2wav.vocoder import HiftConfig, Vocoder

#: A weight-normalised convolution is stored as gain and direction: PyTorch's name for the pair, and its older one.
_WEIGHT_NORM_NAMES = (
    ("parametrizations.weight.original0", "parametrizations.weight.original1"),
    ("weight_g", "weight_v"),
)

#: How many names an error message lists before it stops.
_NAMES_SHOWN = 5


def load_vocoder(path: Path) -> Vocoder:
    """The vocoder of a `hift.pt` (or .safetensors) file, ready to run on the CPU; its sizes are read off the tensors.

    Raises:
        CheckpointError: the file is missing, broken, or is not a HiFT vocoder; names the tensor.
    """
    tensors = vocoder_tensors(load_tensors(path))
    vocoder = Vocoder(HiftConfig.from_tensors(tensors))
    load_strict(vocoder, tensors, source=path.name)
    return vocoder.eval().requires_grad_(False)


def load_flow(path: Path, config: FlowConfig) -> FlowNetwork:
    """The flow of a `flow.pt` (or .safetensors) file, in float32 on the CPU. Our names are the file's names.

    Raises:
        CheckpointError: the file is missing, broken, or not the flow that `config` describes; names the tensor.
    """
    with torch.device("meta"):
        network = FlowNetwork(config)  # random first weights would take longer to make than these to load
    network = network.to_empty(device="cpu")
    load_strict(network, load_tensors(path), source=path.name)
    return network.eval().requires_grad_(False)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a file, by name, on the CPU: safetensors, or `torch.save` read without running its code.

    Raises:
        CheckpointError: no such file, a truncated one, or one that holds anything but a flat dict of tensors.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; the checkpoint folder needs it, so download the model again")
    try:
        tensors = load_file(path) if path.suffix == ".safetensors" else _load_pickled(path)
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} cannot be read as weights ({_first_line(error)}); it is truncated or of another kind"
        ) from error
    odd = next((name for name, value in tensors.items() if not isinstance(value, Tensor)), None)
    if odd is not None:
        raise CheckpointError(f"{path}: {odd} is no tensor; expected a flat dict from name to tensor")
    return tensors


def load_strict(module: nn.Module, tensors: Mapping[str, Tensor], *, source: str = "the checkpoint") -> None:
    """Copy `tensors` into `module`, converting to its precision; every name and every shape has to agree.

    Raises:
        CheckpointError: tensors that are missing, spare or of another shape, by name, with what was expected.
    """
    wanted = module.state_dict()
    wrong = [
        f"{name} is {list(tensors[name].shape)} and should be {list(wanted[name].shape)}"
        for name in wanted
        if name in tensors and tensors[name].shape != wanted[name].shape
    ]
    problems = [
        *_listed("missing", [name for name in wanted if name not in tensors]),
        *_listed("not known", [name for name in tensors if name not in wanted]),
        *_listed("of the wrong shape", wrong),
    ]
    if problems:
        raise CheckpointError(f"{source} is not the expected model: {'; '.join(problems)}")
    module.load_state_dict(dict(tensors), strict=True)


def vocoder_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A HiFT file's tensors under our names: no `generator.` in front, and weight norm folded into plain weights.

    The prefix is there in files cut from a training checkpoint, where the vocoder sat inside a larger object.
    """
    return fold_weight_norm({name.removeprefix("generator."): value for name, value in tensors.items()})


def fold_weight_norm(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weight normalisation (arXiv 1602.07868) undone once: weight = g v / |v|, the norm over every axis but the first.

    Both of PyTorch's spellings of the pair are taken. Half a pair is left as it is, for `load_strict` to name.
    """
    folded = dict(tensors)
    for gain_name, direction_name in _WEIGHT_NORM_NAMES:
        for name in tensors:
            layer = name.removesuffix(gain_name)
            if layer == name or layer + direction_name not in folded:
                continue
            gain, direction = folded.pop(name), folded.pop(layer + direction_name)
            norm = torch.linalg.vector_norm(direction, dim=tuple(range(1, direction.dim())), keepdim=True)
            folded[layer + "weight"] = direction * (gain / norm)
    return folded


def _load_pickled(path: Path) -> dict[str, Tensor]:
    loaded = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(loaded, dict):
        raise ValueError(f"it holds a {type(loaded).__name__}")
    return loaded


def _listed(what: str, names: list[str]) -> list[str]:
    if not names:
        return []
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return [f"{len(names)} {what}: {', '.join(names[:_NAMES_SHOWN])}{more}"]


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
