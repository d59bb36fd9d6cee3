"""Sines and cosines for the encoder's attention: a table of positions once, and a step's own each time."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from sidecar.token2wav.conformer import position_angles
from sidecar.token2wav.gpu.rows import STEP_SIZES, Field, Rows

_PROMPT_TOKENS = tl.constexpr(Field.PROMPT_TOKENS.value)
_TOKENS_DONE = tl.constexpr(Field.TOKENS_DONE.value)
_TURN = tl.constexpr(2 * math.pi)

_BLOCK_STEPS = 8


def position_table(places: int, channels: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(places, C): cosines, then sines, of positions 0 to `places`."""
    cosine, sine = position_angles(torch.arange(places, device=device)[None], channels)
    return torch.cat([cosine, sine], dim=-1)[0].to(dtype)


def turns_per_position(channels: int, device: torch.device) -> Tensor:
    """(C / 2,) float64: the frequencies of `position_angles`, in full turns instead of radians."""
    pair = torch.arange(channels // 2, dtype=torch.float64, device=device)
    return torch.exp(pair * (-2 * math.log(10_000.0) / channels)) / (2 * math.pi)


def new_angles(rows: Rows, turns: Tensor, *, columns_per_token: int) -> Tensor:
    """What `position_angles` gives for each line's new steps, counted from the prompt's start.

    Args:
        turns: `turns_per_position`.

    Returns:
        (B, T, C) float32, cosines, then sines; T = N times `columns_per_token`.
    """
    steps, half = rows.tokens * columns_per_token, turns.shape[0]
    out = turns.new_empty(rows.batch, steps, 2 * half, dtype=torch.float32)
    _new_angles_kernel[(triton.cdiv(steps, _BLOCK_STEPS), rows.batch)](
        rows.control,
        rows.control.stride(0),
        turns,
        out,
        steps,
        COLUMNS_PER_TOKEN=columns_per_token,
        HALF=half,
        BLOCK_STEPS=_BLOCK_STEPS,
        BLOCK_H=triton.next_power_of_2(half),
        num_warps=4,
    )
    return out


@triton.jit(do_not_specialize=STEP_SIZES)
def _new_angles_kernel(  # type: ignore[no-untyped-def]
    control_ptr,
    control_stride,
    turns_ptr,
    out_ptr,
    steps,
    COLUMNS_PER_TOKEN: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_STEPS: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    line = tl.program_id(1)
    fields = control_ptr + line * control_stride
    before = (tl.load(fields + _PROMPT_TOKENS) + tl.load(fields + _TOKENS_DONE)) * COLUMNS_PER_TOKEN
    step = tl.program_id(0) * BLOCK_STEPS + tl.arange(0, BLOCK_STEPS)
    half = tl.arange(0, BLOCK_H)
    turns = (before + step).to(tl.float64)[:, None] * tl.load(turns_ptr + half, mask=half < HALF, other=0.0)[None, :]
    # whole turns leave in float64, so that float32 has all its digits for the rest
    angle = (turns - tl.floor(turns)).to(tl.float32) * _TURN
    at = (line * steps + step[:, None]) * (2 * HALF) + half[None, :]
    here = (step[:, None] < steps) & (half[None, :] < HALF)
    tl.store(out_ptr + at, tl.cos(angle), mask=here)
    tl.store(out_ptr + at + HALF, tl.sin(angle), mask=here)
