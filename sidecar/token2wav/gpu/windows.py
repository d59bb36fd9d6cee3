"""Causal convolutions of three frames as matrix products: each frame beside the two before it.

A window is a row [x(t - 2), x(t - 1), x(t)] of 3h numbers. The kernels that compute x write it to the three windows it
stands in; the two frames before the first come from the slot. A stream's last two frames are put into its slot by the
kernel after, when all have read what was there.
"""

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from sidecar.timebase import FRAMES_PER_TOKEN
from sidecar.token2wav.gpu.norms import ADAPTIVE_NORM_EPS, add_gated, modulated, rows_a_program
from sidecar.token2wav.gpu.rows import STEP_SIZES, Field, Rows

TAPS = 3

_SLOT = tl.constexpr(int(Field.SLOT))
_NEW_TOKENS = tl.constexpr(int(Field.NEW_TOKENS))
_FRAMES_PER_TOKEN = tl.constexpr(FRAMES_PER_TOKEN)
_NORM_EPS = tl.constexpr(1e-5)


@dataclass(frozen=True)
class ConvPast:
    """Where the streams of a step keep the last inputs of one block's two convolutions."""

    of_slots: Tensor  # (S, 2, 2h, 2), strided along S; axis 1 is guidance
    rows: Rows


@triton.jit
def _past_of(  # type: ignore[no-untyped-def]
    past, control, row, inside, frames, batch, line, slot_stride, guidance_stride
):
    """For each row: its frame, its stream's new frames, and the address of its stream's past."""
    at = row // frames
    guidance = at // batch
    stream = control + (at - guidance * batch) * line
    new = tl.load(stream + _NEW_TOKENS, mask=inside, other=0) * _FRAMES_PER_TOKEN
    slot = tl.load(stream + _SLOT, mask=inside & (new > 0), other=0)
    return row - at * frames, new, past + slot * slot_stride + guidance * guidance_stride


@triton.jit
def _store_windows(  # type: ignore[no-untyped-def]
    y, past, windows, row, frame, frames, new, channel, inside, C: tl.constexpr
):
    """y into the windows of its own frame and the two after it, and the past into the first two."""
    at = windows + row * (3 * C) + channel
    tl.store(at + 2 * C, y, mask=inside)
    tl.store(at + 4 * C, y, mask=inside & (frame + 1 < frames))
    tl.store(at + 6 * C, y, mask=inside & (frame + 2 < frames))
    held = inside & (new > 0)
    second = tl.load(past + 2 * channel + frame, mask=held & (frame < 2), other=0.0)
    tl.store(at, second, mask=inside & (frame < 2))
    newest = tl.load(past + 2 * channel + 1, mask=held & (frame < 1), other=0.0)
    tl.store(at + C, newest, mask=inside & (frame < 1))


@triton.jit
def _keep_last(windows, past, row, frame, new, channel, inside, C: tl.constexpr):  # type: ignore[no-untyped-def]
    """The newest two frames of each stream, out of its windows and into its past."""
    kept = inside & (frame < new) & (frame >= new - 2)
    y = tl.load(windows + row * (3 * C) + 2 * C + channel, mask=kept, other=0.0)
    tl.store(past + 2 * channel + (frame - new + 2), y, mask=kept)


@triton.jit(do_not_specialize=STEP_SIZES)
def _norm_to_windows(  # type: ignore[no-untyped-def]
    x, delta, gate, affine, windows,
    past, control, rows, frames, batch, line, slot_stride, guidance_stride,
    C: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    channel = tl.arange(0, BLOCK)[None, :]
    inside = (row < rows) & (channel < C)
    frame, new, first = _past_of(past, control, row, row < rows, frames, batch, line, slot_stride, guidance_stride)
    total = add_gated(x, delta, gate, row * C + channel, channel, inside, C)
    y = modulated(total, affine, channel, inside, C, ADAPTIVE_NORM_EPS)
    y = y.to(windows.dtype.element_ty)
    _store_windows(y, first, windows, row, frame, frames, new, channel, inside, C)


@triton.jit(do_not_specialize=STEP_SIZES)
def _mish_to_windows(  # type: ignore[no-untyped-def]
    x, affine, first_windows, windows,
    past, control, rows, frames, batch, line, slot_stride, guidance_stride,
    C: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    channel = tl.arange(0, BLOCK)[None, :]
    inside = (row < rows) & (channel < C)
    frame, new, first = _past_of(past, control, row, row < rows, frames, batch, line, slot_stride, guidance_stride)
    y = tl.load(x + row * C + channel, mask=inside, other=0.0).to(tl.float32)
    y = modulated(y, affine, channel, inside, C, _NORM_EPS)
    # tanh(softplus(y)) = w / (w + 2) for w = e (e + 2), e = exp(y); above 20 that is 1 in float32
    power = tl.exp(tl.minimum(y, 20.0))
    w = power * (power + 2)
    y = (y * (w / (w + 2))).to(windows.dtype.element_ty)
    _store_windows(y, first + 2 * C, windows, row, frame, frames, new, channel, inside, C)
    _keep_last(first_windows, first, row, frame, new, channel, inside, C)


@triton.jit(do_not_specialize=STEP_SIZES)
def _norm_and_keep(  # type: ignore[no-untyped-def]
    x, delta, gate, affine, out, second_windows,
    past, control, rows, frames, batch, line, slot_stride, guidance_stride,
    C: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    channel = tl.arange(0, BLOCK)[None, :]
    inside = (row < rows) & (channel < C)
    frame, new, first = _past_of(past, control, row, row < rows, frames, batch, line, slot_stride, guidance_stride)
    at = row * C + channel
    total = add_gated(x, delta, gate, at, channel, inside, C)
    tl.store(out + at, modulated(total, affine, channel, inside, C, ADAPTIVE_NORM_EPS), mask=inside)
    _keep_last(second_windows, first + 2 * C, row, frame, new, channel, inside, C)


def norm_to_windows(x: Tensor, delta: Tensor, gate: Tensor, affine: Tensor, *, windows: Tensor, past: ConvPast) -> None:
    """`add_and_norm` of (R T, h), its outcome as windows (R T, 3h) of the first convolution."""
    _norm_to_windows[_grid(x)](x, delta, gate, affine, windows, *_places(x, past), **_sizes(x))


def mish_to_windows(x: Tensor, affine: Tensor, *, first_windows: Tensor, windows: Tensor, past: ConvPast) -> None:
    """mish(norm(x) * scale + shift), x (R T, h), as windows (R T, 3h) of the second convolution.

    What the first convolution keeps is taken from its windows.
    """
    _mish_to_windows[_grid(x)](x, affine, first_windows, windows, *_places(x, past), **_sizes(x))


def norm_and_keep(
    x: Tensor, delta: Tensor, gate: Tensor, affine: Tensor, *, out: Tensor, windows: Tensor, past: ConvPast
) -> None:
    """`add_and_norm` into out (R T, h); what the second convolution keeps is taken from its `windows`."""
    _norm_and_keep[_grid(x)](x, delta, gate, affine, out, windows, *_places(x, past), **_sizes(x))


def _grid(x: Tensor) -> tuple[int]:
    return (triton.cdiv(len(x), rows_a_program(len(x), x.device)),)


def _places(x: Tensor, past: ConvPast) -> tuple[Tensor, Tensor, int, int, int, int, int, int]:
    control = past.rows.control
    return (
        past.of_slots, control, len(x), past.rows.frames, past.rows.batch, control.stride(0),
        past.of_slots.stride(0), past.of_slots.stride(1),
    )  # fmt: skip


def _sizes(x: Tensor) -> dict[str, int]:
    rows, channels = x.shape
    return {
        "C": channels,
        "BLOCK": triton.next_power_of_2(channels),
        "ROWS": rows_a_program(rows, x.device),
        "num_warps": 4,
    }
