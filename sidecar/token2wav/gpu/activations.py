"""What stands between the vocoder's convolutions: Snake, leaky ReLU, ELU, and where its branches part and meet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from sidecar.token2wav.gpu.ragged import Ragged, valid_rows
from sidecar.token2wav.resblock import Snake

_ELEMENTS = 1024

# pi in three parts: multiples of the first two have no rounding, so that what is left of a large angle is exact.
_PI_HIGH = tl.constexpr(3.140625)
_PI_MIDDLE = tl.constexpr(9.67502593994140625e-4)
_PI_LOW = tl.constexpr(1.509957990978376432e-7)
_TURNS = tl.constexpr(0.31830988618379067)  # 1 / pi


@dataclass(frozen=True)
class Activation:
    """One of `snake`, `leaky` and `elu`, as a kernel takes it."""

    kind: str
    alphas: Tensor | None = None  # snake: (G, 2, C) float32, alpha and 1 / alpha of each channel
    slope: float = 0.0  # leaky


def snakes(layers: Sequence[Snake]) -> Activation:
    """The Snakes of G branches side by side."""
    alphas = torch.stack([layer.alpha.detach().float() for layer in layers])  # (G, C)
    return Activation("snake", torch.stack([alphas, 1 / (alphas + 1e-9)], dim=1).contiguous())


def leaky(slope: float) -> Activation:
    return Activation("leaky", slope=slope)


@triton.jit
def snake(x, alpha, inverse):  # type: ignore[no-untyped-def]
    """x + sin(alpha x)^2 / alpha. The square repeats every pi, so a short series does, however large the angle."""
    angle = alpha * x
    turns = tl.floor(angle * _TURNS + 0.5)
    rest = angle - turns * _PI_HIGH
    rest = rest - turns * _PI_MIDDLE
    rest = rest - turns * _PI_LOW  # within [-pi / 2, pi / 2]
    square = rest * rest
    series = 2.755731922e-6 - square * 2.50521084e-8
    series = -1.984126984e-4 + square * series
    series = 8.333333333e-3 + square * series
    series = -1.666666667e-1 + square * series
    sine = rest + rest * square * series
    return x + sine * sine * inverse


@triton.jit
def activate(x, alpha, inverse, KIND: tl.constexpr, SLOPE: tl.constexpr):  # type: ignore[no-untyped-def]
    """x in float32; alpha and inverse are read by `snake` alone."""
    if KIND == "snake":
        x = snake(x, alpha, inverse)
    elif KIND == "leaky":
        x = tl.where(x > 0, x, x * SLOPE)
    else:
        tl.static_assert(KIND == "elu")
        x = tl.where(x > 0, x, tl.exp(x) - 1)
    return x


@triton.jit
def _part(  # type: ignore[no-untyped-def]
    upsampled, source, lengths, alphas, joined, parted, up_rows, rows,
    C: tl.constexpr, GROUPS: tl.constexpr, RATE: tl.constexpr, EXTRA: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    line = tl.program_id(1)
    element = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    kept = element < valid_rows(lengths, line, RATE, EXTRA) * C
    channel = element % C
    row = element // C
    # One row more than was upsampled: it stands in front, and is the mirror image of the second.
    mirrored = tl.where(row == 0, 1, row - 1) if EXTRA == 1 else row
    start = line.to(tl.int64) * rows * C
    up = tl.load(upsampled + line.to(tl.int64) * up_rows * C + mirrored * C + channel, mask=kept, other=0.0)
    x = up.to(tl.float32) + tl.load(source + start + element, mask=kept, other=0.0).to(tl.float32)
    tl.store(joined + start + element, x, mask=kept)
    for group in tl.static_range(GROUPS):
        alpha = tl.load(alphas + 2 * group * C + channel)
        inverse = tl.load(alphas + (2 * group + 1) * C + channel)
        place = group * tl.num_programs(1).to(tl.int64) * rows * C + start
        tl.store(parted + place + element, snake(x, alpha, inverse), mask=kept)


def join_and_part(upsampled: Ragged, source: Ragged, activation: Activation) -> tuple[Ragged, Ragged]:
    """The sum of the upsampled and the source, and its Snakes for G branches: (1, B, L, C), (G, B, L, C).

    Where the source is one row longer (`extra`), the sum's first row is made of the upsampled's second, a reflection.
    """
    assert activation.alphas is not None, "branches begin with a Snake each"
    groups = activation.alphas.shape[0]
    joined = torch.empty_like(source.values)
    parted = joined.new_empty(groups, *joined.shape[1:])
    _part[triton.cdiv(source.rows * source.channels, _ELEMENTS), source.lines](
        upsampled.values, source.values, source.lengths, activation.alphas, joined, parted, upsampled.rows,
        source.rows, C=source.channels, GROUPS=groups, RATE=source.rate, EXTRA=source.extra, BLOCK=_ELEMENTS,
    )  # fmt: skip
    return _like(source, joined), _like(source, parted)


@triton.jit
def _mean(  # type: ignore[no-untyped-def]
    x, lengths, out, rows,
    C: tl.constexpr, GROUPS: tl.constexpr, RATE: tl.constexpr, EXTRA: tl.constexpr, SLOPE: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    line = tl.program_id(1)
    element = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    kept = element < valid_rows(lengths, line, RATE, EXTRA) * C
    start = line.to(tl.int64) * rows * C
    total = tl.zeros((BLOCK,), tl.float32)
    for group in tl.static_range(GROUPS):
        place = group * tl.num_programs(1).to(tl.int64) * rows * C + start
        total += tl.load(x + place + element, mask=kept, other=0.0).to(tl.float32)
    tl.store(out + start + element, activate(total / GROUPS, 0.0, 0.0, "leaky", SLOPE), mask=kept)


def leaky_mean(x: Ragged, slope: float) -> Ragged:
    """Leaky ReLU of the mean of G branches: (1, B, L, C)."""
    out = torch.empty_like(x.values[:1])
    _mean[triton.cdiv(x.rows * x.channels, _ELEMENTS), x.lines](
        x.values, x.lengths, out, x.rows,
        C=x.channels, GROUPS=x.groups, RATE=x.rate, EXTRA=x.extra, SLOPE=slope, BLOCK=_ELEMENTS,
    )  # fmt: skip
    return _like(x, out)


def _like(x: Ragged, values: Tensor) -> Ragged:
    return Ragged(values, x.lengths, x.rate, x.extra)
