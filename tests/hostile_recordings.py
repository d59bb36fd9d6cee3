"""Recordings that nobody means well with, and odd ones that still deserve an answer."""

from __future__ import annotations

import io

import numpy as np
import soundfile
from numpy.typing import NDArray
from requests_with_audio import float_wav

RATE_HZ = 16000


def _tone(seconds: float = 1.0, rate_hz: int = RATE_HZ) -> NDArray[np.float32]:
    times = np.arange(round(seconds * rate_hz)) / rate_hz
    return (0.3 * np.sin(2 * np.pi * 440 * times)).astype(np.float32)


def _with(value: float) -> bytes:
    samples = _tone()
    samples[800:900] = value
    return float_wav(samples)


def _pcm(samples: NDArray[np.float32]) -> bytes:
    sink = io.BytesIO()
    soundfile.write(sink, samples, RATE_HZ, format="WAV", subtype="PCM_16")
    return sink.getvalue()


#: Numbers that a waveform may hold in a float wav and that no answer may be computed from. Only the log-mel of the
#: last one overflows.
NOT_FINITE = {"nan": _with(np.nan), "infinity": _with(np.inf), "minus infinity": _with(-np.inf), "1e30": _with(1e30)}
#: Bytes from which no sound can be had.
NO_SOUND = {
    "garbage": np.random.default_rng(0).bytes(4000),
    "a wav's head on garbage": b"RIFF\xff\xff\xff\xffWAVE" + np.random.default_rng(1).bytes(4000),
    "a wav cut in its header": _pcm(_tone())[:30],
    "no samples": _pcm(_tone(0)),
}
#: Unusual, but sound.
ANSWERED = {
    "clipped": _pcm(np.sign(_tone())),
    "far above full scale": float_wav(_tone() * np.float32(1e4)),
    "silent": _pcm(np.zeros(RATE_HZ, np.float32)),
    "8 channels": _pcm(np.stack([_tone()] * 8, axis=1)),
    "192 kHz": float_wav(_tone(rate_hz=192_000), 192_000),
    "1 sample": _pcm(_tone()[:1]),
    "cut off in the middle": _pcm(_tone(2.0))[:40_000],
}
