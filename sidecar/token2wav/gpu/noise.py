"""The numbers of `token2wav/noise.py`, drawn where they are used."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from sidecar.timebase import FRAMES_PER_TOKEN
from sidecar.token2wav.gpu.rows import Field, Rows
from sidecar.token2wav.noise import GROUP, SPEECH_MEL

_NEW_TOKENS = tl.constexpr(int(Field.NEW_TOKENS))
_TOKENS_DONE = tl.constexpr(int(Field.TOKENS_DONE))
_SEED = tl.constexpr(int(Field.SEED))
_FRAMES_PER_TOKEN = tl.constexpr(FRAMES_PER_TOKEN)
_SPEECH_MEL = tl.constexpr(SPEECH_MEL)
_GROUP = tl.constexpr(GROUP)
_UNIT = tl.constexpr(2.0**-24)
_RADIANS = tl.constexpr(2.0**-24 * 2 * math.pi)

#: Groups of numbers that one program draws, for a GPU: one a thread.
_GROUPS = 128


def groups_a_program(groups: int, device: torch.device) -> int:
    """How many of a line's `groups` one program of 4 warps takes; the interpreter pays for each program alone."""
    return triton.next_power_of_2(groups) if device.type == "cpu" else _GROUPS


@triton.jit
def _box_muller(radius, angle):  # type: ignore[no-untyped-def]
    length = tl.sqrt(-2.0 * tl.log(((radius >> 8) + 1).to(tl.float32) * _UNIT))
    turned = (angle >> 8).to(tl.float32) * _RADIANS
    return length * tl.cos(turned), length * tl.sin(turned)


@triton.jit
def four_normals(seed, USE: tl.constexpr, frame, group):  # type: ignore[no-untyped-def]
    """Numbers 4 group to 4 group + 3 of a frame, for each pair of the two (BLOCK,): (BLOCK, 4) float32."""
    use = (group * 0 + USE).to(tl.uint32)
    a, b, c, d = tl.philox(seed, group.to(tl.uint32), frame.to(tl.uint32), (frame >> 32).to(tl.uint32), use)
    first, second = _box_muller(a, b)
    third, fourth = _box_muller(c, d)
    pairs = tl.join(tl.join(first, third), tl.join(second, fourth))  # (BLOCK, 2, 2)
    return tl.reshape(pairs, (group.shape[0], 4))


@triton.jit
def _mel_noise(control, out, line_fields, frames, M: tl.constexpr, GROUPS: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    line = tl.program_id(1)
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    frame = index // GROUPS
    group = index % GROUPS
    stream = control + line * line_fields
    first = tl.load(stream + _TOKENS_DONE) * _FRAMES_PER_TOKEN
    drawn = four_normals(tl.load(stream + _SEED), _SPEECH_MEL, first + frame, group)
    inside = frame < tl.load(stream + _NEW_TOKENS) * _FRAMES_PER_TOKEN
    bins = group[:, None] * _GROUP + tl.arange(0, _GROUP)[None, :]
    there = (frame < frames)[:, None] & (bins < M)
    at = (line * frames + frame)[:, None] * M + bins
    tl.store(out + at, tl.where(inside[:, None], drawn, 0.0), mask=there)


def mel_noise(rows: Rows, mel_bins: int) -> Tensor:
    """Where the flow starts from: (B, T, M) float32; zeros beyond a line's new frames."""
    out = torch.empty(rows.batch, rows.frames, mel_bins, dtype=torch.float32, device=rows.control.device)
    groups = triton.cdiv(mel_bins, GROUP)
    block = groups_a_program(rows.frames * groups, out.device)
    _mel_noise[triton.cdiv(rows.frames * groups, block), rows.batch](
        rows.control, out, rows.control.stride(0), rows.frames, M=mel_bins, GROUPS=groups, BLOCK=block, num_warps=4
    )
    return out
