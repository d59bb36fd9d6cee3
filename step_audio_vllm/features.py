"""Waveform to log-mel as Whisper makes it, and how many placeholders a recording costs.

Every count that the prompt or the encoder relies on comes from this file: a prompt with one placeholder more than the
encoder gives rows would take down the whole server, not one request.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

SAMPLE_RATE_HZ = 16000
CHUNK_SAMPLES = 25 * SAMPLE_RATE_HZ
#: What one placeholder stands for.
PLACEHOLDER_SAMPLES = SAMPLE_RATE_HZ * 2 // 25
MEL_BINS = 128
#: `<audio_start>` and `<audio_end>` around the placeholders of each chunk.
BLOCK_MARKERS = 2

_FFT_SAMPLES = 400
_HOP_SAMPLES = 160
_RIGHT_PADDING_SAMPLES = 479
_HIGHEST_HZ = 8000.0
_DYNAMIC_RANGE = 8.0  # in log10: 80 dB


class NotFinite(ValueError):
    """The recording holds, or leads to, numbers that are not finite; they would spoil other requests too."""


def chunk_lengths(samples: int) -> list[int]:
    """Samples in each chunk of a recording at 16 kHz: 25 s each, then what is left. None for an empty recording."""
    return [min(CHUNK_SAMPLES, samples - start) for start in range(0, samples, CHUNK_SAMPLES)]


def mel_frames(samples: int) -> int:
    """Log-mel frames (100 Hz) of one chunk of that many samples."""
    return (samples + _RIGHT_PADDING_SAMPLES) // _HOP_SAMPLES


def placeholders(frames: int) -> int:
    """Placeholders (12.5 Hz) of one chunk of that many log-mel frames, and rows the adaptor gives for it.

    Two frames see nothing but the padding and do not count; the rest is halved three times: by the encoder's second
    convolution, by its pooling, by the adaptor's convolution. 0 for chunks of up to 20 ms.
    """
    return (frames + 3) // 8


def block_tokens(samples: int) -> int:
    """Prompt tokens of a recording at 16 kHz: placeholders and markers of all its chunks."""
    return sum(placeholders(mel_frames(chunk)) + BLOCK_MARKERS for chunk in chunk_lengths(samples))


def clip_features(waveform: Tensor) -> tuple[Tensor, list[int]]:
    """All chunks of a recording.

    Args:
        waveform: (S,) float at 16 kHz.

    Returns:
        (T, M) float32, the chunks' log-mels one after another, and the frames of each chunk.

    Raises:
        NotFinite: a sample or a log-mel value is infinite or not a number.
        ValueError: there is no sample at all.
    """
    if waveform.ndim != 1 or waveform.numel() == 0:
        raise ValueError(f"a recording must be one channel with at least one sample; got {tuple(waveform.shape)}")
    if not _all_finite(waveform):
        raise NotFinite("the recording has samples that are not finite; check how it was made")
    mels = [log_mel(chunk) for chunk in torch.split(waveform.float(), CHUNK_SAMPLES)]
    features = torch.cat(mels)  # (T, M)
    if not _all_finite(features):
        raise NotFinite("the recording is too loud: its spectrum is not finite; scale its samples to -1 … 1")
    frames = [len(mel) for mel in mels]
    expected = [mel_frames(samples) for samples in chunk_lengths(len(waveform))]
    assert frames == expected, f"{frames} log-mel frames where {expected} were counted"
    return features, frames


def log_mel(waveform: Tensor) -> Tensor:
    """Log-mel of one chunk, Whisper's recipe with 30 ms of silence appended.

    Args:
        waveform: (S,) float32 at 16 kHz, at least one sample.

    Returns:
        (T, M) float32, T = mel_frames(S); -1.5 everywhere for silence.
    """
    padded = F.pad(waveform, (0, _RIGHT_PADDING_SAMPLES))
    half = _FFT_SAMPLES // 2
    centred = F.pad(padded[None], (half, half), mode="reflect")[0]
    # a row for each frame all the way: twice as fast as torch.stft, whose bins by frames are read across
    frames = centred.unfold(0, _FFT_SAMPLES, _HOP_SAMPLES)[:-1] * _window()
    spectrum = torch.fft.rfft(frames)  # (T, F)
    power = spectrum.real.square() + spectrum.imag.square()
    log = (power @ mel_filters().T).clamp(min=1e-10).log10()  # (T, M)
    return (torch.maximum(log, log.max() - _DYNAMIC_RANGE) + 4.0) / 4.0


def _all_finite(values: Tensor) -> bool:
    """NaN and infinity both show in the extremes: one pass, where asking every value takes four."""
    return all(math.isfinite(extreme.item()) for extreme in torch.aminmax(values))


@cache
def _window() -> Tensor:
    return torch.hann_window(_FFT_SAMPLES, dtype=torch.float32)


@cache
def mel_filters() -> Tensor:
    """(M, F) float32: triangles on Slaney's mel scale, each of unit area, as in librosa."""
    mels = torch.linspace(0.0, _mel(_HIGHEST_HZ), MEL_BINS + 2, dtype=torch.float64)
    edges = torch.where(mels < 15, mels * 200 / 3, 1000 * torch.exp((mels - 15) * _LOG_STEP))  # Hz
    bins = torch.arange(_FFT_SAMPLES // 2 + 1, dtype=torch.float64) * SAMPLE_RATE_HZ / _FFT_SAMPLES
    low, centre, high = (edges[i : MEL_BINS + i, None] for i in range(3))
    triangles = torch.minimum((bins - low) / (centre - low), (high - bins) / (high - centre)).clamp(min=0)
    return (triangles * 2 / (high - low)).float()


_LOG_STEP = torch.log(torch.tensor(6.4, dtype=torch.float64)).item() / 27


def _mel(hz: float) -> float:
    """Slaney's mel of a frequency of at least 1000 Hz: linear below, logarithmic from there."""
    return 15 + torch.log(torch.tensor(hz / 1000, dtype=torch.float64)).item() / _LOG_STEP
