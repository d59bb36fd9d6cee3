"""Pitch to the vocoder's harmonic source, sines and noise and all, in two kernels.

The same as `phase.continued_phase` and `source.HarmonicSource`, four neighbouring samples of all harmonics at a time.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from sidecar.timebase import FRAMES_PER_TOKEN, SAMPLE_RATE_HZ, SAMPLES_PER_FRAME
from sidecar.token2wav.gpu.noise import four_normals, groups_a_program
from sidecar.token2wav.gpu.rows import Field, Rows
from sidecar.token2wav.gpu.slots import FINAL_FRAMES, Slots
from sidecar.token2wav.noise import GROUP, SOURCE
from sidecar.token2wav.phase import HARMONICS
from sidecar.token2wav.pitch import REACH_FRAMES
from sidecar.token2wav.source import SINE_AMPLITUDE, UNVOICED_NOISE, VOICED_ABOVE_HZ, VOICED_NOISE, HarmonicSource

_SLOT = tl.constexpr(int(Field.SLOT))
_TOKENS_DONE = tl.constexpr(int(Field.TOKENS_DONE))
_HELD_FRAMES = tl.constexpr(int(Field.HELD_FRAMES))
_SEED = tl.constexpr(int(Field.SEED))
_FRAMES_PER_TOKEN = tl.constexpr(FRAMES_PER_TOKEN)
_FINAL_FRAMES = tl.constexpr(FINAL_FRAMES)
_REACH_FRAMES = tl.constexpr(REACH_FRAMES)
_HARMONICS = tl.constexpr(HARMONICS)
_RATE = tl.constexpr(SAMPLE_RATE_HZ)
_SAMPLES = tl.constexpr(SAMPLES_PER_FRAME)
_GROUP = tl.constexpr(GROUP)
_GROUPS_A_FRAME = tl.constexpr(SAMPLES_PER_FRAME // GROUP)
_USE = tl.constexpr(SOURCE)
_AMPLITUDE = tl.constexpr(SINE_AMPLITUDE)
_VOICED_ABOVE = tl.constexpr(VOICED_ABOVE_HZ)
_VOICED_NOISE = tl.constexpr(VOICED_NOISE)
_UNVOICED_NOISE = tl.constexpr(UNVOICED_NOISE)
_TWO_PI = tl.constexpr(2 * math.pi)


@triton.jit
def _fraction(x):  # type: ignore[no-untyped-def]
    return x - tl.floor(x)


@triton.jit
def _continue_pitch(  # type: ignore[no-untyped-def]
    pitch, final_f0, final_turns, lengths, control, f0, turns, line_fields, frames, BLOCK: tl.constexpr
):
    line = tl.program_id(0)
    stream = control + line * line_fields
    length = tl.load(lengths + line)
    slot = tl.load(stream + _SLOT)
    frame = tl.arange(0, BLOCK)
    final = frame < tl.load(stream + _HELD_FRAMES) - _REACH_FRAMES
    own = frame < length
    hz = tl.load(pitch + line * frames + frame, mask=own, other=0.0)
    hz = tl.where(final, tl.load(final_f0 + slot * _FINAL_FRAMES + frame, mask=own & final, other=0.0), hz)
    before = tl.load(final_turns + slot, mask=length > 0, other=0.0)
    turned = before + tl.cumsum(_fraction(hz.to(tl.float64) / _RATE) * _SAMPLES, axis=0)
    tl.store(f0 + line * frames + frame, hz, mask=frame < frames)
    tl.store(turns + line * frames + frame, _fraction(turned), mask=frame < frames)


@triton.jit
def _sound(  # type: ignore[no-untyped-def]
    f0, turns, weight, bias, at_start, lengths, control, out, line_fields, frames, BLOCK: tl.constexpr
):
    line = tl.program_id(1)
    stream = control + line * line_fields
    length = tl.load(lengths + line)
    seed = tl.load(stream + _SEED)
    first = tl.load(stream + _TOKENS_DONE) * _FRAMES_PER_TOKEN - tl.load(stream + _HELD_FRAMES)
    still = tl.load(at_start + tl.load(stream + _SLOT), mask=length > 0, other=0) > 0
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    frame = index // _GROUPS_A_FRAME
    group = index % _GROUPS_A_FRAME
    own = frame < length

    hz = tl.load(f0 + line * frames + frame, mask=own, other=0.0)
    middle = tl.load(turns + line * frames + frame, mask=own, other=0.0)
    # The way from the middle of the frame before, or to that of the frame after, at the later one's pitch; where there
    # is no such frame the phase stands still.
    coming = group < _GROUPS_A_FRAME // 2
    later = frame + tl.where(coming, 0, 1)
    moves = own & (later < length) & ((later > 0) | (not still))
    moving = tl.load(f0 + line * frames + later, mask=moves, other=0.0).to(tl.float64)
    sample = group[:, None] * _GROUP + tl.arange(0, _GROUP)[None, :]  # (BLOCK, 4), of the frame
    way = (sample.to(tl.float32) - (_SAMPLES - 1) / 2) / _SAMPLES
    voiced = tl.where(hz > _VOICED_ABOVE, 1.0, 0.0)[:, None]
    loudness = voiced * _VOICED_NOISE + (1 - voiced) * _UNVOICED_NOISE

    mixed = tl.zeros((BLOCK, _GROUP), tl.float32) + tl.load(bias)
    for harmonic in range(0, _HARMONICS):
        number = harmonic + 1
        here = _fraction(middle * number).to(tl.float32)[:, None]
        step = (_fraction(moving * number / _RATE) * _SAMPLES).to(tl.float32)[:, None]
        turned = here + way * step
        turned = turned - tl.floor(turned + 0.5)
        noise = four_normals(seed, _USE, first + frame, group + harmonic * _GROUPS_A_FRAME)
        wave = voiced * _AMPLITUDE * tl.sin(turned * _TWO_PI) + loudness * noise
        mixed += tl.load(weight + harmonic) * wave
    # tanh(x) = 2 sigmoid(2 x) - 1
    at = line * frames * _SAMPLES + frame[:, None] * _SAMPLES + sample
    tl.store(out + at, 2 * tl.sigmoid(2 * mixed) - 1, mask=own[:, None])


def continue_pitch(pitch: Tensor, lengths: Tensor, rows: Rows, slots: Slots) -> tuple[Tensor, Tensor]:
    """The final pitches of the held frames in place of new ones, and how far the fundamental has turned.

    Args:
        pitch: (B, F) in Hz, of the held and the new frames.
        lengths: (B,) frames of each line.

    Returns:
        pitch (B, F) float32, and turns (B, F) float64, modulo 1, at the middle of each frame.
    """
    batch, frames = pitch.shape
    f0, turns = torch.empty_like(pitch), torch.empty_like(pitch, dtype=torch.float64)
    _continue_pitch[(batch,)](
        pitch, slots.f0, slots.turns, lengths, rows.control, f0, turns, rows.control.stride(0), frames,
        BLOCK=triton.next_power_of_2(frames), num_warps=4,
    )  # fmt: skip
    return f0, turns


def harmonic_source(
    f0: Tensor, turns: Tensor, lengths: Tensor, mixer: HarmonicSource, rows: Rows, slots: Slots
) -> Tensor:
    """`continue_pitch`'s two -> source (B, 480 F) float32; what lies beyond a line's length may be anything."""
    batch, frames = f0.shape
    out = f0.new_empty(batch, frames * SAMPLES_PER_FRAME)
    groups = out.shape[1] // GROUP
    block = groups_a_program(groups, out.device)
    _sound[triton.cdiv(groups, block), batch](
        f0, turns, mixer.l_linear.weight, mixer.l_linear.bias, slots.at_start, lengths, rows.control, out,
        rows.control.stride(0), frames, BLOCK=block, num_warps=4,
    )  # fmt: skip
    return out
