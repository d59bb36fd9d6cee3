"""Mel filters on Slaney's scale, and the mel that the flow continues."""

from __future__ import annotations

import math
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from sidecar.timebase import SAMPLE_RATE_HZ, SAMPLES_PER_FRAME

FLOW_MEL_BINS = 80
FLOW_N_FFT = 1920
HIGHEST_HZ = 8000.0
#: Under this, the natural log would follow noise.
FLOOR = 1e-5

#: Slaney's scale: 15 mels up to 1 kHz in a straight line, above it 27 for each factor of 6.4.
_HZ_PER_MEL = 200 / 3
_BREAK_HZ = 1000.0
_BREAK_MEL = 15.0
_MELS_PER_E = 27 / math.log(6.4)


def flow_mel(samples: Tensor) -> Tensor:
    """Sound (S,) at 24 kHz -> natural-log mel (S // 480, 80). At least 721 samples: the edges are mirrored."""
    overhang = (FLOW_N_FFT - SAMPLES_PER_FRAME) // 2
    padded = F.pad(samples[None], (overhang, overhang), mode="reflect")
    spectrum = torch.stft(
        padded, FLOW_N_FFT, SAMPLES_PER_FRAME, window=torch.hann_window(FLOW_N_FFT), center=False, return_complex=True
    )[0]  # (961, T)
    magnitude = torch.sqrt(spectrum.real.square() + spectrum.imag.square() + 1e-9)
    mel = slaney_filters(FLOW_MEL_BINS, FLOW_N_FFT, SAMPLE_RATE_HZ) @ magnitude  # (80, T)
    return mel.clamp(min=FLOOR).log().T


@cache
def slaney_filters(bins: int, n_fft: int, sample_rate_hz: int) -> Tensor:
    """(bins, n_fft / 2 + 1): triangles from 0 to 8 kHz, each of area 1 over its width, as librosa makes them."""
    highest = _BREAK_MEL + _MELS_PER_E * math.log(HIGHEST_HZ / _BREAK_HZ)
    edges = _mel_to_hz(torch.linspace(0, highest, bins + 2, dtype=torch.float64))
    frequency = torch.arange(n_fft // 2 + 1, dtype=torch.float64) * sample_rate_hz / n_fft
    low, centre, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    triangles = torch.minimum((frequency - low) / (centre - low), (high - frequency) / (high - centre)).clamp(min=0)
    return (triangles * 2 / (high - low)).float()


def _mel_to_hz(mel: Tensor) -> Tensor:
    return torch.where(mel < _BREAK_MEL, mel * _HZ_PER_MEL, _BREAK_HZ * torch.exp((mel - _BREAK_MEL) / _MELS_PER_E))
