"""Pitch to the harmonic source of the vocoder: nine sines and noise, mixed to one (HiFTNet, arXiv 2309.09493)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sidecar.timebase import SAMPLE_RATE_HZ, SAMPLES_PER_FRAME

#: The fundamental and eight overtones.
HARMONICS = 9
SINE_AMPLITUDE = 0.1
#: Standard deviation of the noise beside a voiced sine.
VOICED_NOISE = 0.003
#: And where there is no voice: the noise alone carries the sound.
UNVOICED_NOISE = SINE_AMPLITUDE / 3
#: A frame is voiced above this pitch.
VOICED_ABOVE_HZ = 10.0


class HarmonicSource(nn.Module):
    """f0 (B, T) in Hz -> source (B, 1, 480 T). The phase starts from 0 in every call."""

    def __init__(self) -> None:
        super().__init__()
        self.l_linear = nn.Linear(HARMONICS, 1)

    def forward(self, f0: Tensor, noise: Tensor) -> Tensor:
        """`noise` (B, 480 T, 9) is standard normal; zeros leave the sines alone."""
        voiced = voiced_samples(f0)  # (B, 480 T, 1)
        amplitude = voiced * VOICED_NOISE + (1 - voiced) * UNVOICED_NOISE
        waves = voiced_sines(f0) + amplitude * noise  # (B, 480 T, 9)
        mixed: Tensor = torch.tanh(self.l_linear(waves))
        return mixed.transpose(1, 2)


def voiced_sines(f0: Tensor) -> Tensor:
    """f0 (B, T) -> (B, 480 T, 9): the sines at their amplitude, silent in unvoiced frames."""
    return SINE_AMPLITUDE * unit_sines(f0) * voiced_samples(f0)


def unit_sines(f0: Tensor) -> Tensor:
    """f0 (B, T) -> (B, 480 T, 9) sines of amplitude 1, one for each harmonic.

    The phase is summed over frames and drawn straight between the middles of two frames, so it stands still for half
    a frame at both ends. It reaches tens of thousands of radians in float32: the order of the products is what the
    weights were trained with, and another order is heard a thousandth of a radian away.
    """
    harmonic = torch.arange(1, HARMONICS + 1, device=f0.device, dtype=f0.dtype)
    turns = (f0[:, None] * harmonic[:, None] / SAMPLE_RATE_HZ) % 1  # (B, 9, T), of a sample
    phase = torch.cumsum(turns, dim=-1) * 2 * math.pi * SAMPLES_PER_FRAME
    phase = F.interpolate(phase, scale_factor=float(SAMPLES_PER_FRAME), mode="linear")
    return torch.sin(phase).transpose(1, 2)


def voiced_samples(f0: Tensor) -> Tensor:
    """f0 (B, T) -> (B, 480 T, 1): 1 where the frame has a pitch, else 0."""
    return (f0 > VOICED_ABOVE_HZ).to(f0.dtype).repeat_interleave(SAMPLES_PER_FRAME, dim=-1)[..., None]
