"""The vocoder's small Fourier transform, 16 samples every 4, there and back, as two convolutions.

Convolutions with fixed cosines and sines instead of `torch.stft` and `torch.istft`: the latter looks at its data on
the host, which would forbid capturing a step in a CUDA graph.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

N_FFT = 16
HOP_SAMPLES = 4
BINS = N_FFT // 2 + 1


class ShortTimeFourier(nn.Module):
    """Centred transform with a periodic Hann window; its tables are computed, never loaded."""

    analysis: Tensor
    synthesis: Tensor
    window_power: Tensor

    def __init__(self) -> None:
        super().__init__()
        sample = torch.arange(N_FFT, dtype=torch.float64)
        window = 0.5 - 0.5 * torch.cos(2 * math.pi * sample / N_FFT)
        angle = 2 * math.pi * torch.arange(BINS, dtype=torch.float64)[:, None] * sample / N_FFT
        waves = torch.cat([torch.cos(angle), -torch.sin(angle)]) * window  # (18, 16)
        # Every bin but the first and the last stands for its mirror image too.
        share = torch.full((BINS, 1), 2.0 / N_FFT, dtype=torch.float64)
        share[0] = share[-1] = 1.0 / N_FFT
        for name, table in (
            ("analysis", waves),
            ("synthesis", waves * share.repeat(2, 1)),
            ("window_power", window.square()[None]),
        ):
            self.register_buffer(name, table[:, None].float(), persistent=False)  # (18 or 1, 1, 16)

    def analyse(self, signal: Tensor) -> Tensor:
        """(B, 1, S) -> (B, 18, S / 4 + 1): the real parts of the 9 bins, then their imaginary parts."""
        padded = F.pad(signal, (N_FFT // 2, N_FFT // 2), mode="reflect")
        return F.conv1d(padded, self.analysis, stride=HOP_SAMPLES)

    def synthesise(self, magnitude: Tensor, phase: Tensor) -> Tensor:
        """(B, 9, F) magnitudes and angles in radians -> (B, 4 (F - 1)) samples."""
        spectrum = torch.cat([magnitude * torch.cos(phase), magnitude * torch.sin(phase)], dim=1)  # (B, 18, F)
        added = F.conv_transpose1d(spectrum, self.synthesis, stride=HOP_SAMPLES)  # (B, 1, S + 16)
        power = F.conv_transpose1d(torch.ones_like(spectrum[:1, :1]), self.window_power, stride=HOP_SAMPLES)
        inside = slice(N_FFT // 2, -(N_FFT // 2))
        return (added[..., inside] / power[..., inside])[:, 0]
