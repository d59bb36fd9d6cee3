"""How far each harmonic of a pitch has turned, sample by sample.

Both ways hold a frame's pitch for the frame, sum it up over frames and draw the phase straight between the middles of
two frames. Where nothing is known beyond an end, the phase stands still for the half frame from there to the nearest
middle: the weights were trained on pieces of sound that begin and end like that.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from sidecar.timebase import SAMPLE_RATE_HZ, SAMPLES_PER_FRAME

#: The fundamental and eight overtones.
HARMONICS = 9


def summed_turns(f0: Tensor, before: Tensor) -> Tensor:
    """Turns of the fundamental at the middle of each frame, modulo 1.

    Summed in float64 and without the whole turns, an hour is as exact as a second: the pitch's own rounding, 6e-8 of
    it, is all there is. A harmonic has turned its number times as far.

    Args:
        f0: (B, T) in Hz.
        before: (B,) float64, the turns at the middle of the frame before; 0 where there is none.

    Returns:
        (B, T) float64.
    """
    turns = f0.double() / SAMPLE_RATE_HZ % 1 * SAMPLES_PER_FRAME
    return (before[:, None] + turns.cumsum(dim=1)) % 1


def continued_phase(f0: Tensor, before: Tensor, at_start: Tensor) -> Tensor:
    """Radians within one turn, the phase going on from the call before.

    Args:
        f0: (B, T) in Hz.
        before: (B,) float64 as `summed_turns` takes it.
        at_start: (B,) true where the first frame is its stream's first.

    Returns:
        (B, 480 T, 9), the same numbers however a stream is cut into calls.
    """
    harmonic = torch.arange(1, HARMONICS + 1, device=f0.device, dtype=torch.float64)
    middle = (summed_turns(f0, before)[..., None] * harmonic % 1).float()[:, :, None]  # (B, T, 1, 9)
    step = (f0.double()[..., None] * harmonic / SAMPLE_RATE_HZ % 1 * SAMPLES_PER_FRAME).float()  # (B, T, 9)
    coming = torch.cat([step[:, :1].masked_fill(at_start[:, None, None], 0), step[:, 1:]], dim=1)[:, :, None]
    leaving = F.pad(step[:, 1:], (0, 0, 0, 1))[:, :, None]
    half = SAMPLES_PER_FRAME // 2
    passed = ((torch.arange(half, device=f0.device) + 0.5) / SAMPLES_PER_FRAME)[:, None]  # (240, 1) of the way
    turns = torch.cat([middle - passed.flip(0) * coming, middle + passed * leaving], dim=2)  # (B, T, 480, 9)
    return turns.flatten(1, 2).frac() * (2 * math.pi)


def reference_phase(f0: Tensor) -> Tensor:
    """f0 (B, T) in Hz -> radians (B, 480 T, 9), as the model's authors sum them: from 0 in every call.

    They reach tens of thousands of radians in float32, so that the order of the products is heard: any other lands a
    thousandth of a radian away after a few seconds. This order is theirs.
    """
    harmonic = torch.arange(1, HARMONICS + 1, device=f0.device, dtype=f0.dtype)
    turns = (f0[:, None] * harmonic[:, None] / SAMPLE_RATE_HZ) % 1  # (B, 9, T), of a sample
    phase = torch.cumsum(turns, dim=-1) * 2 * math.pi * SAMPLES_PER_FRAME
    return F.interpolate(phase, scale_factor=float(SAMPLES_PER_FRAME), mode="linear").transpose(1, 2)
