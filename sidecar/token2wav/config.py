"""The sizes of the flow, taken from the data in `flow.yaml` and checked against what this package builds."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

from sidecar.errors import CheckpointError
from sidecar.token2wav.flow_yaml import read_flow_yaml

#: Keys with one value that this package implements. Another value would be another network.
_FIXED: dict[str, Any] = {
    "output_type": "mel",
    "input_layer": "linear",
    "pre_lookahead_len": 3,
    "up_stride": 2,
    "up_scale_factor": 2,
    "pos_enc_layer_type": "rel_pos_espnet",
    "selfattention_layer_type": "rel_selfattn",
    "key_bias": True,
    "normalize_before": True,
}

#: Keys that matter in training only.
_TRAINING = {"dropout_rate", "positional_dropout_rate", "attention_dropout_rate"}

#: Far above every model of this kind, and low enough for a network of these sizes to be described before its weights
#: are looked at.
_MOST = 1_000_000
_MOST_BLOCKS = 256
#: How many unknown keys an error lists.
_NAMES_SHOWN = 10

_COUNTS_OF_BLOCKS = {"num_blocks", "num_up_blocks", "depth"}


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """Sizes of the upsampling conformer encoder; the defaults are those of the classes that `flow.yaml` names."""

    input_size: int
    output_size: int = 256
    attention_heads: int = 4
    linear_units: int = 2048
    num_blocks: int = 6
    num_up_blocks: int = 4

    def __post_init__(self) -> None:
        _within_bounds(self, "flow.encoder")
        if self.input_size != self.output_size:
            raise CheckpointError(
                f"flow.encoder.input_size ({self.input_size}) and output_size ({self.output_size}) have to be equal: "
                "the second input layer takes what the first stack gives"
            )
        if self.output_size % self.attention_heads or self.output_size % 2:
            raise CheckpointError(
                f"flow.encoder.output_size ({self.output_size}) has to be even and divide into "
                f"attention_heads ({self.attention_heads})"
            )


@dataclass(frozen=True, kw_only=True)
class EstimatorConfig:
    """Sizes of the velocity network (DiT)."""

    in_channels: int = 320
    out_channels: int = 80
    mlp_ratio: float = 4.0
    depth: int = 28
    num_heads: int = 8
    head_dim: int = 64
    hidden_size: int = 256

    def __post_init__(self) -> None:
        _within_bounds(self, "flow.decoder.estimator")
        if self.in_channels != 4 * self.out_channels:
            raise CheckpointError(
                f"flow.decoder.estimator.in_channels ({self.in_channels}) has to be 4 x out_channels "
                f"({self.out_channels}): noisy mel, encoder output, speaker and prompt mel side by side"
            )


@dataclass(frozen=True, kw_only=True)
class FlowConfig:
    """Sizes of the whole flow.

    Attributes:
        cfg_rate: strength of classifier-free guidance (arXiv 2207.12598).
        steps: K, Euler steps from noise to mel; not in `flow.yaml`, the authors run 10.
    """

    encoder: EncoderConfig
    estimator: EstimatorConfig
    input_size: int = 512
    output_size: int = 80
    spk_embed_dim: int = 192
    vocab_size: int = 5121
    cfg_rate: float = 0.7
    steps: int = 10

    def __post_init__(self) -> None:
        _within_bounds(self, "flow")
        if self.input_size != self.encoder.input_size:
            raise CheckpointError(
                f"flow.input_size ({self.input_size}) has to equal flow.encoder.input_size "
                f"({self.encoder.input_size}): the embedding feeds the encoder"
            )
        if self.output_size != self.estimator.out_channels:
            raise CheckpointError(
                f"flow.output_size ({self.output_size}) has to equal flow.decoder.estimator.out_channels "
                f"({self.estimator.out_channels}): both are mel bins"
            )

    @classmethod
    def from_mapping(cls, flow: Mapping[str, Any], *, steps: int = 10) -> FlowConfig:
        """From the nested mapping under `flow:`; keys left out take the class's default.

        Raises:
            CheckpointError: a key or value that this package does not build; names it and what is expected.
        """
        encoder = EncoderConfig(**_sizes(EncoderConfig, _part(flow, "encoder", "flow"), "flow.encoder"))
        decoder = _part(flow, "decoder", "flow")
        estimator = EstimatorConfig(
            **_sizes(EstimatorConfig, _part(decoder, "estimator", "flow.decoder"), "flow.decoder.estimator")
        )
        rate = _checked(decoder.get("inference_cfg_rate", 0.7), float, "flow.decoder.inference_cfg_rate")
        _refuse_spare(decoder, {"inference_cfg_rate", "estimator"}, "flow.decoder")
        own = {key: value for key, value in flow.items() if key not in {"encoder", "decoder"}}
        return cls(encoder=encoder, estimator=estimator, cfg_rate=rate, steps=steps, **_sizes(cls, own, "flow"))


def load_flow_config(path: Path, *, steps: int = 10) -> FlowConfig:
    """`flow.yaml` of a checkpoint folder, to be solved in so many steps.

    Raises:
        CheckpointError: no such file, not YAML, or not the flow that this package builds.
    """
    flow = read_flow_yaml(path)
    try:
        return FlowConfig.from_mapping(flow, steps=steps)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error.message}") from error


def _part(mapping: Mapping[str, Any], key: str, where: str) -> Mapping[str, Any]:
    part = mapping.get(key)
    if not isinstance(part, Mapping):
        raise CheckpointError(f"{where}.{key} should be a mapping of sizes, and is {reprlib.repr(part)}")
    return part


def _sizes(config: type, given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The entries of `given` that are fields of `config`, with their types checked, once everything else is known."""
    # Annotations are strings here; sizes are the fields of simple types.
    kinds = {field.name: {"int": int, "float": float}.get(str(field.type)) for field in fields(config)}
    sizes = {key: kind for key, kind in kinds.items() if kind is not None and key not in {"steps", "cfg_rate"}}
    _refuse_spare(given, sizes.keys() | _FIXED.keys() | _TRAINING, where)
    for key in _FIXED.keys() & given.keys():
        # by type too: True equals 1
        if type(given[key]) is not type(_FIXED[key]) or given[key] != _FIXED[key]:
            raise CheckpointError(
                f"{where}.{key} is {reprlib.repr(given[key])}; this package builds {_FIXED[key]!r} only"
            )
    missing = [
        field.name
        for field in fields(config)
        if field.name in sizes and field.default is MISSING and field.name not in given
    ]
    if missing:
        raise CheckpointError(f"{where} lacks {', '.join(missing)}, which has no default")
    return {key: _checked(given[key], kind, f"{where}.{key}") for key, kind in sizes.items() if key in given}


def _checked(value: Any, kind: type, where: str) -> Any:
    if isinstance(value, bool) or not isinstance(value, (int, float) if kind is float else int):
        raise CheckpointError(
            f"{where} is {reprlib.repr(value)} and should be a number"
            + ("" if kind is float else " without a fraction")
        )
    return value


def _refuse_spare(mapping: Mapping[str, Any], known: set[str], where: str) -> None:
    spare = sorted(reprlib.repr(key).strip("'") for key in mapping if key not in known)
    if spare:
        raise CheckpointError(
            f"{where} has the unknown {', '.join(spare[:_NAMES_SHOWN])}; known are {', '.join(sorted(known))}"
        )


def _within_bounds(config: Any, where: str) -> None:
    for field in fields(config):
        value, most = getattr(config, field.name), _MOST_BLOCKS if field.name in _COUNTS_OF_BLOCKS else _MOST
        if not isinstance(value, (int, float)):
            continue
        if field.name == "cfg_rate":
            if not 0 <= value <= most:
                raise CheckpointError(f"flow.decoder.inference_cfg_rate is {value} and should be 0 to {most}")
        elif not 0 < value <= most:
            raise CheckpointError(
                f"{where}.{field.name} is {reprlib.repr(value)} and should be above 0, {most} at most"
            )
