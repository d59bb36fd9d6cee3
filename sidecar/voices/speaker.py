"""Sound to a speaker embedding: Kaldi's filterbank, and CAM++ (arXiv 2303.00332) in ONNX."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from sidecar.timebase import INPUT_RATE_HZ
from sidecar.voices.onnx import OnnxModel

BINS = 80
FRAME_SAMPLES = 400
HOP_SAMPLES = 160
N_FFT = 512
PREEMPHASIS = 0.97
LOWEST_HZ, HIGHEST_HZ = 20.0, 8000.0


class SpeakerEncoder:
    """16 kHz sound -> what tells one voice from another."""

    def __init__(self, path: Path) -> None:
        self._model = OnnxModel(path, inputs=1)

    def embedding(self, samples: Tensor) -> Tensor:
        """(S,) with at least 400 samples -> (192,), not normalised."""
        return torch.from_numpy(self._model.run(centred(filterbank(samples))[None].numpy()))[0]


def filterbank(samples: Tensor) -> Tensor:
    """Sound (S,) at 16 kHz in [-1, 1) -> natural-log energies (1 + (S - 400) // 160, 80), as Kaldi makes them."""
    frames = samples.unfold(0, FRAME_SAMPLES, HOP_SAMPLES)  # (T, 400)
    frames = frames - frames.mean(dim=1, keepdim=True)
    before = torch.cat([frames[:, :1], frames[:, :-1]], dim=1)
    power = torch.fft.rfft((frames - PREEMPHASIS * before) * _povey_window(), n=N_FFT).abs().square()
    energy: Tensor = power[:, :-1] @ kaldi_filters().T  # the last bin has no filter
    return energy.clamp(min=torch.finfo(torch.float32).eps).log()


def centred(energies: Tensor) -> Tensor:
    """Energies (T, 80) less each bin's mean over the recording: what a microphone adds goes with it."""
    return energies - energies.mean(dim=0, keepdim=True)


@cache
def kaldi_filters() -> Tensor:
    """(80, 256): triangles equally wide in mel, their slopes straight in mel too, not normalised."""
    lowest, highest = (_mel(torch.tensor(hz, dtype=torch.float64)) for hz in (LOWEST_HZ, HIGHEST_HZ))
    mel = _mel(torch.arange(N_FFT // 2, dtype=torch.float64) * INPUT_RATE_HZ / N_FFT)
    step = (highest - lowest) / (BINS + 1)
    left = lowest + torch.arange(BINS, dtype=torch.float64)[:, None] * step
    return torch.minimum((mel - left) / step, (left + 2 * step - mel) / step).clamp(min=0).float()


def _mel(hz: Tensor) -> Tensor:
    return torch.log(1 + hz / 700) * 1127


@cache
def _povey_window() -> Tensor:
    sample = torch.arange(FRAME_SAMPLES, dtype=torch.float64)
    return (0.5 - 0.5 * torch.cos(2 * math.pi * sample / (FRAME_SAMPLES - 1))).pow(0.85).float()
