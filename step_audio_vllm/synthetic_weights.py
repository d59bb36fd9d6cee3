"""The synthetic model's weights: random, but for the script, which is written into them.

The width of the language model is cut in three. One *rail* for each place of the script: a token's embedding lights the
rail of the place it leads to, and the output layer reads each rail for the tokens that may stand there. One *floor*,
lit in every embedding and read by every output row, which puts all other tokens far below, at negative logits, where
neither temperature nor a repetition penalty lifts them. The rest is *colour*: the only part that attention and MLP
write to, with random weights, so that the choice within a place depends on the whole prompt, as said and as heard.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from step_audio_vllm.synthetic_script import Script

Weights = NDArray[np.float32]

#: Width of the adapter's middle layer: a constant of the model, in no configuration.
ADAPTER_WIDTH = 2048

#: What a lit rail and the floor hold. Colour is made as strong as both together, which the last norm then evens out.
RAIL_LEVEL = 8.0
#: Logit of every token that may not stand here, and of those that may, before colour is added.
FLOOR_LOGIT = -80.0
ALLOWED_LOGIT = 4.0
#: Standard deviation of the logits that colour adds, at a typical norm: choices are open, but no lottery.
COLOUR_LOGIT = 2.0
#: Standard deviation of attention scores: sharp enough for single words of a long prompt to count.
ATTENTION_SCORE = 2.0


@dataclass(frozen=True)
class ModelSize:
    """The sizes of a checkpoint, as in its config.json."""

    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    vocab_size: int
    encoder_width: int
    encoder_heads: int
    encoder_layers: int
    context_tokens: int = 16384
    mel_bins: int = 128
    encoder_frames: int = 1500
    adapter_kernel: int = 3
    adapter_stride: int = 2

    @property
    def head_width(self) -> int:
        return self.hidden_size // self.heads


class Draw:
    """Random tensors, one after the other from one seed."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)

    def normal(self, *shape: int, deviation: float, mean: float = 0.0) -> Weights:
        drawn: Weights = self._random.standard_normal(shape, dtype=np.float32)
        return drawn * np.float32(deviation) + np.float32(mean)

    def layer(self, name: str, *shape: int, gain: float = 1.0) -> Iterator[tuple[str, Weights]]:
        """Weight (out, in, ...) and bias (out) of a layer whose output is about `gain` times its input."""
        yield f"{name}.weight", self.normal(*shape, deviation=gain / sqrt(np.prod(shape[1:])))
        yield f"{name}.bias", self.normal(shape[0], deviation=0.1)

    def norm(self, name: str, width: int) -> Iterator[tuple[str, Weights]]:
        yield f"{name}.weight", self.normal(width, deviation=0.1, mean=1.0)
        yield f"{name}.bias", self.normal(width, deviation=0.1)


def model_tensors(size: ModelSize, script: Script, ids: dict[str, int], seed: int) -> dict[str, Weights]:
    """Every tensor of the checkpoint by its name.

    Args:
        ids: token name -> id, every token of the tokenizer.

    Raises:
        ValueError: the width is too small for the script, or the vocabulary for the tokenizer.
    """
    if size.hidden_size < len(script.places) + 1 + size.head_width:
        raise ValueError(
            f"a hidden size of {size.hidden_size} is too small: the script takes {len(script.places) + 1} of it and "
            f"colour needs at least {size.head_width}"
        )
    if size.vocab_size <= max(ids.values()):
        raise ValueError(f"a vocabulary of {size.vocab_size} rows is too small for {max(ids.values()) + 1} tokens")
    draw = Draw(seed)
    return dict([*_encoder(size, draw), *_adapter(size, script, draw), *_language_model(size, script, ids, draw)])


def _encoder(size: ModelSize, draw: Draw) -> Iterator[tuple[str, Weights]]:
    width = size.encoder_width
    yield from draw.layer("encoder.conv1", width, size.mel_bins, 3, gain=2.0)
    yield from draw.layer("encoder.conv2", width, width, 3, gain=2.0)
    yield "encoder.positional_embedding.weight", draw.normal(size.encoder_frames, width, deviation=0.3)
    for number in range(size.encoder_layers):
        block = f"encoder.blocks.{number}"
        for part in ("query", "value", "out"):
            yield from draw.layer(f"{block}.attn.{part}", width, width, gain=1.5)
        yield f"{block}.attn.key.weight", draw.normal(width, width, deviation=1.5 / sqrt(width))
        yield from draw.norm(f"{block}.attn_ln", width)
        yield from draw.layer(f"{block}.mlp.0", 4 * width, width, gain=1.5)
        yield from draw.layer(f"{block}.mlp.2", width, 4 * width)
        yield from draw.norm(f"{block}.mlp_ln", width)
    yield from draw.norm("encoder.after_norm", width)


def _adapter(size: ModelSize, script: Script, draw: Draw) -> Iterator[tuple[str, Weights]]:
    """Sound becomes colour, on the rail of a written reply, as any token that the script doesn't name."""
    width = size.encoder_width
    yield from draw.layer("adapter.conv", width, width, size.adapter_kernel, gain=1.5)
    yield from draw.layer("adapter.linear1", ADAPTER_WIDTH, width, gain=1.5)
    rows = draw.normal(size.hidden_size, ADAPTER_WIDTH, deviation=_colour_deviation(size, script) / sqrt(ADAPTER_WIDTH))
    rows[: len(script.places) + 1] = 0
    yield "adapter.linear2.weight", rows
    yield "adapter.linear2.bias", _rail(size, script, script.text_start)


def _language_model(size: ModelSize, script: Script, ids: dict[str, int], draw: Draw) -> Iterator[tuple[str, Weights]]:
    yield "model.embed_tokens.weight", _embedding(size, script, ids, draw)
    for number in range(size.layers):
        yield from _decoder_layer(f"model.layers.{number}", size, script, draw)
    yield "model.norm.weight", np.ones(size.hidden_size, dtype=np.float32)
    yield "lm_head.weight", _output_rows(size, script, ids, draw)


def _decoder_layer(layer: str, size: ModelSize, script: Script, draw: Draw) -> Iterator[tuple[str, Weights]]:
    hidden, kv_width = size.hidden_size, size.kv_heads * size.head_width
    score = sqrt(ATTENTION_SCORE)
    yield from draw.layer(f"{layer}.self_attn.q_proj", hidden, hidden, gain=score)
    # keys and values are of colour alone: on the rails, all words of a prompt are the same
    yield from _of_colour(f"{layer}.self_attn.k_proj", kv_width, size, script, draw, gain=score)
    yield from _of_colour(f"{layer}.self_attn.v_proj", kv_width, size, script, draw, gain=1.0)
    yield f"{layer}.self_attn.o_proj.weight", _into_colour(size, script, hidden, draw)
    yield f"{layer}.mlp.gate_proj.weight", draw.normal(size.intermediate_size, hidden, deviation=2 / sqrt(hidden))
    yield f"{layer}.mlp.up_proj.weight", draw.normal(size.intermediate_size, hidden, deviation=1 / sqrt(hidden))
    yield f"{layer}.mlp.down_proj.weight", _into_colour(size, script, size.intermediate_size, draw)
    for norm in ("input_layernorm", "post_attention_layernorm"):
        yield f"{layer}.{norm}.weight", np.ones(hidden, dtype=np.float32)


def _embedding(size: ModelSize, script: Script, ids: dict[str, int], draw: Draw) -> Weights:
    rows = np.tile(_rail(size, script, script.text_start), (size.vocab_size, 1))  # (vocabulary, H)
    for name, place in script.leads_to.items():
        rows[ids[name]] = _rail(size, script, place)
    colour = rows[:, len(script.places) + 1 :]
    colour += draw.normal(*colour.shape, deviation=_colour_deviation(size, script))
    return rows


def _output_rows(size: ModelSize, script: Script, ids: dict[str, int], draw: Draw) -> Weights:
    # With colour as strong as rail and floor together, the last norm turns their level into sqrt(hidden / 4).
    level = sqrt(size.hidden_size / 4)
    floor = len(script.places)
    rows = np.zeros((size.vocab_size, size.hidden_size), dtype=np.float32)
    rows[:, floor] = FLOOR_LOGIT / level
    for place, names in enumerate(script.places):
        for name in names:
            rows[ids[name], place] = (ALLOWED_LOGIT - FLOOR_LOGIT - script.reluctance.get(name, 0.0)) / level
    rows[:, floor + 1 :] = draw.normal(*rows[:, floor + 1 :].shape, deviation=COLOUR_LOGIT / sqrt(size.hidden_size / 2))
    return rows


def _rail(size: ModelSize, script: Script, place: int) -> Weights:
    """The embedding of a token that leads to a place, without colour."""
    row = np.zeros(size.hidden_size, dtype=np.float32)
    row[[place, len(script.places)]] = RAIL_LEVEL
    return row


def _of_colour(
    name: str, width: int, size: ModelSize, script: Script, draw: Draw, *, gain: float
) -> Iterator[tuple[str, Weights]]:
    """A layer (width, H) that reads colour alone, made for colour as strong as it is in the embedding."""
    parts = 1 + 2 * size.layers
    colours = size.hidden_size - len(script.places) - 1
    share = 1 / (1 + parts)  # of the normed vector's energy
    rows = draw.normal(width, size.hidden_size, deviation=gain / sqrt(size.hidden_size * share))
    rows[:, :-colours] = 0
    yield f"{name}.weight", rows
    yield f"{name}.bias", draw.normal(width, deviation=0.1)


def _into_colour(size: ModelSize, script: Script, width: int, draw: Draw) -> Weights:
    """A projection (H, width) that leaves rails and floor as they are."""
    rows = draw.normal(size.hidden_size, width, deviation=_colour_deviation(size, script) / sqrt(width))
    rows[: len(script.places) + 1] = 0
    return rows


def _colour_deviation(size: ModelSize, script: Script) -> float:
    """Of one colour value, so that embedding, attentions and MLPs together are as strong as rail and floor."""
    colours = size.hidden_size - len(script.places) - 1
    parts = 1 + 2 * size.layers
    return sqrt(2 * RAIL_LEVEL**2 / colours / parts)
