"""Pitch to the harmonic source of the vocoder: nine sines and noise, mixed to one (HiFTNet, arXiv 2309.09493)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sidecar.timebase import SAMPLES_PER_FRAME
from sidecar.token2wav.phase import HARMONICS

SINE_AMPLITUDE = 0.1
#: Standard deviation of the noise beside a voiced sine.
VOICED_NOISE = 0.003
#: And where there is no voice: the noise alone carries the sound.
UNVOICED_NOISE = SINE_AMPLITUDE / 3
#: A frame is voiced above this pitch.
VOICED_ABOVE_HZ = 10.0


class HarmonicSource(nn.Module):
    """f0 (B, T) in Hz -> source (B, 1, 480 T)."""

    def __init__(self) -> None:
        super().__init__()
        self.l_linear = nn.Linear(HARMONICS, 1)

    def forward(self, f0: Tensor, phase: Tensor, noise: Tensor) -> Tensor:
        """`phase` (B, 480 T, 9) in radians; `noise` (B, 480 T, 9) standard normal, zeros leave the sines alone."""
        voiced = voiced_samples(f0)  # (B, 480 T, 1)
        amplitude = voiced * VOICED_NOISE + (1 - voiced) * UNVOICED_NOISE
        waves = voiced_sines(f0, phase) + amplitude * noise  # (B, 480 T, 9)
        mixed: Tensor = torch.tanh(self.l_linear(waves))
        return mixed.transpose(1, 2)


def voiced_sines(f0: Tensor, phase: Tensor) -> Tensor:
    """f0 (B, T) -> (B, 480 T, 9): the sines at their amplitude, silent in unvoiced frames."""
    return SINE_AMPLITUDE * torch.sin(phase) * voiced_samples(f0)


def voiced_samples(f0: Tensor) -> Tensor:
    """f0 (B, T) -> (B, 480 T, 1): 1 where the frame has a pitch, else 0."""
    return (f0 > VOICED_ABOVE_HZ).to(f0.dtype).repeat_interleave(SAMPLES_PER_FRAME, dim=-1)[..., None]
