"""Checkpoint files into modules: strictly, and with one map from the names in the files to ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sidecar.errors import CheckpointError
from sidecar.token2wav.config import FlowConfig
from sidecar.token2wav.flow import FlowNetwork
from sidecar.token2wav.vocoder import HiftConfig, Vocoder
from sidecar.token2wav.weight_files import load_tensors
from sidecar.token2wav.weight_norm import fold_weight_norm

_PREFIX = "generator."

#: What the vocoder's file is, for those who have something else. Its sizes are read off it, so they cannot be checked.
_RELEASED_VOCODER = "328 tensors with 20,821,295 numbers (83 MB) if it is the released model's"

#: Eight times the released vocoder's width.
_MOST_CHANNELS = 4096

#: How many names an error message lists before it stops.
_NAMES_SHOWN = 5


def load_vocoder(path: Path, *, mel_bins: int | None = None) -> Vocoder:
    """The vocoder of a `hift.pt` (or .safetensors) file, ready to run on the CPU; its sizes are read off the tensors.

    Args:
        mel_bins: of the mels it will be given, if that is known.

    Raises:
        CheckpointError: the file is missing, broken, or is not a HiFT vocoder; names the tensor.
    """
    stored = load_tensors(path, expected=_RELEASED_VOCODER)
    try:
        tensors = vocoder_tensors(stored)
        config = HiftConfig.from_tensors(tensors)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error.message}") from error
    if mel_bins is not None and config.mel_bins != mel_bins:
        raise CheckpointError(
            f"{path}: conv_pre takes mels of {config.mel_bins} bins, and flow.yaml beside it makes {mel_bins}; "
            "take all files of token2wav from one checkpoint"
        )
    if max(config.base_channels, config.f0_channels, config.mel_bins) > _MOST_CHANNELS:
        raise CheckpointError(f"{path} is no HiFT vocoder that fits any memory: it says of itself {config}")
    with _Uninitialised():
        vocoder = Vocoder(config)
    load_strict(vocoder, tensors, source=str(path))
    return vocoder.eval().requires_grad_(False)


def load_flow(path: Path, config: FlowConfig, *, dtype: torch.dtype = torch.float32) -> FlowNetwork:
    """The flow of a `flow.pt` (or .safetensors) file, in float32 on the CPU. Our names are the file's names.

    Args:
        dtype: that it will be run in; weights too large for it are refused.

    Raises:
        CheckpointError: the file is missing, broken, or not the flow that `config` describes; names the tensor.
    """
    with torch.device("meta"), _Uninitialised():
        network = FlowNetwork(config)  # no memory yet: the loaded tensors become its own
    shapes = network.state_dict().values()
    numbers = sum(shape.numel() for shape in shapes)
    expected = f"{len(shapes)} tensors with {numbers:,} numbers ({4 * numbers / 1e6:.0f} MB in float32), by flow.yaml"
    tensors = load_tensors(path, expected=expected)
    load_strict(network, tensors, source=str(path))
    _check_range(path, tensors, dtype)
    return network.eval().requires_grad_(False)


def load_strict(module: nn.Module, tensors: Mapping[str, Tensor], *, source: str = "the checkpoint") -> None:
    """Make `tensors` the module's own, in its precision; every name and every shape has to agree.

    What has that precision already is taken over and not copied: at full size a copy is another 623 MB.

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
        *_listed("missing", [f"{name} {list(wanted[name].shape)}" for name in wanted if name not in tensors]),
        *_listed("not known", [name for name in tensors if name not in wanted]),
        *_listed("of the wrong shape", wrong),
    ]
    if problems:
        raise CheckpointError(
            f"{source} ({len(tensors)} tensors) is not the expected model ({len(wanted)}): {'; '.join(problems)}"
        )
    module.load_state_dict(
        {name: tensors[name].to(value.dtype) for name, value in wanted.items()}, strict=True, assign=True
    )


def vocoder_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A HiFT file's tensors under our names: no `generator.` in front, and weight norm folded into plain weights.

    The prefix is there in files cut from a training checkpoint, where the vocoder sat inside a larger object.

    Raises:
        CheckpointError: a tensor that is there twice, or a weight norm that cannot be undone; names the tensor.
    """
    named: dict[str, Tensor] = {}
    for name, value in tensors.items():
        plain = name.removeprefix(_PREFIX)
        if plain in named:
            raise CheckpointError(f"{plain} is there twice, with {_PREFIX!r} in front and without")
        named[plain] = value
    return fold_weight_norm(named)


class _Uninitialised(TorchFunctionMode):
    """Layers made here skip their random first weights, which the loaded ones replace.

    Where they have no memory yet, drawing them would also import half of PyTorch's compiler: 1.2 s and 150 MB.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


def _check_range(path: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    for name, value in tensors.items():
        low, high = value.aminmax()
        if max(-low, high) > largest:
            raise CheckpointError(
                f"{path}: {name} goes from {low:.3g} to {high:.3g}, and {dtype} ends at {largest:.3g}; "
                "run the flow in bfloat16 or float32"
            )


def _listed(what: str, names: list[str]) -> list[str]:
    if not names:
        return []
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return [f"{len(names)} {what}: {', '.join(names[:_NAMES_SHOWN])}{more}"]
