"""Layer norms of the velocity network, joined with what stands around them: residual sums, modulation, conversions.

What is added up from block to block is float32, (R T, h); what the next layer takes is in that layer's precision.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from sidecar.token2wav.gpu.rows import STEP_SIZES

ADAPTIVE_NORM_EPS = tl.constexpr(1e-6)

#: Above so many rows a GPU is full with one warp a row; below, more warps make each row quicker.
_FEW_ROWS = 512
#: The interpreter pays for each program, not for its size.
_INTERPRETED_ROWS = 256


def rows_a_program(rows: int, device: torch.device) -> int:
    """How many of `rows` one program of 4 warps takes."""
    if device.type == "cpu":
        return _INTERPRETED_ROWS
    return 1 if rows <= _FEW_ROWS else 4


@triton.jit
def standardized(x, inside, C: tl.constexpr, EPS: tl.constexpr):  # type: ignore[no-untyped-def]
    """x (rows, BLOCK) float32 to mean 0 and variance 1 over its C real columns."""
    mean = tl.sum(tl.where(inside, x, 0.0), axis=1)[:, None] / C
    centred = tl.where(inside, x - mean, 0.0)
    variance = tl.sum(centred * centred, axis=1)[:, None] / C
    return centred * tl.rsqrt(variance + EPS)


@triton.jit
def add_gated(x, delta, gate, at, channel, inside, C: tl.constexpr):  # type: ignore[no-untyped-def]
    """x + gate * delta, written to x, and returned."""
    total = tl.load(x + at, mask=inside, other=0.0)
    update = tl.load(delta + at, mask=inside, other=0.0).to(tl.float32)
    total += tl.load(gate + channel, mask=channel < C, other=0.0) * update
    tl.store(x + at, total, mask=inside)
    return total


@triton.jit
def modulated(x, affine, channel, inside, C: tl.constexpr, EPS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Normed, times a scale, plus a shift: `affine` (2, C) is shift, then scale."""
    shift = tl.load(affine + channel, mask=channel < C, other=0.0)
    scale = tl.load(affine + C + channel, mask=channel < C, other=0.0)
    return standardized(x, inside, C, EPS) * scale + shift


@triton.jit(do_not_specialize=STEP_SIZES)
def _begin(  # type: ignore[no-untyped-def]
    noisy, given, bias, affine, x, out, lines, C: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    channel = tl.arange(0, BLOCK)[None, :]
    inside = (row < 2 * lines) & (channel < C)
    conditioned = row < lines
    source = tl.where(conditioned, row, row - lines) * C + channel
    total = tl.load(noisy + source, mask=inside, other=0.0).to(tl.float32)
    total += tl.where(
        conditioned,
        tl.load(given + source, mask=inside & conditioned, other=0.0).to(tl.float32),
        tl.load(bias + channel, mask=channel < C, other=0.0).to(tl.float32),
    )
    at = row * C + channel
    tl.store(x + at, total, mask=inside)
    tl.store(out + at, modulated(total, affine, channel, inside, C, ADAPTIVE_NORM_EPS), mask=inside)


@triton.jit(do_not_specialize=STEP_SIZES)
def _add_and_norm(  # type: ignore[no-untyped-def]
    x, delta, gate, affine, out, rows, C: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    channel = tl.arange(0, BLOCK)[None, :]
    inside = (row < rows) & (channel < C)
    at = row * C + channel
    total = add_gated(x, delta, gate, at, channel, inside, C)
    tl.store(out + at, modulated(total, affine, channel, inside, C, ADAPTIVE_NORM_EPS), mask=inside)


def begin(noisy: Tensor, given: Tensor, bias: Tensor, affine: Tensor, *, x: Tensor, out: Tensor) -> None:
    """The first layer's two parts added up, for both halves of guidance, and the first block's norm of that.

    Args:
        noisy: (B T, h), what the noisy mel gives, for both halves.
        given: (B T, h), what the conditions give, the layer's bias included.
        bias: (h,), what no conditions give.
        affine: (2, h) float32, the norm's shift, then its scale.
        x: (2 B T, h) float32, written: with the conditions, then without.
        out: (2 B T, h), written: norm(x) * scale + shift.
    """
    rows, channels = x.shape
    many = rows_a_program(rows, x.device)
    _begin[(triton.cdiv(rows, many),)](
        noisy, given, bias, affine, x, out, rows // 2,
        C=channels, BLOCK=triton.next_power_of_2(channels), ROWS=many, num_warps=4,
    )  # fmt: skip


def add_and_norm(x: Tensor, delta: Tensor, gate: Tensor, affine: Tensor, *, out: Tensor) -> None:
    """x += gate * delta, in place; out = norm(x) * scale + shift.

    Args:
        x: (R T, h) float32.
        delta, out: (R T, h).
        gate: (h,) float32.
        affine: (2, h) float32, shift, then scale.
    """
    rows, channels = x.shape
    many = rows_a_program(rows, x.device)
    _add_and_norm[(triton.cdiv(rows, many),)](
        x, delta, gate, affine, out, rows,
        C=channels, BLOCK=triton.next_power_of_2(channels), ROWS=many, num_warps=4,
    )  # fmt: skip
