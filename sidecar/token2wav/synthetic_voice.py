"""A recording to serve as the synthetic checkpoint's voice: a made-up throat that sings vowels."""

from __future__ import annotations

import io
import wave

import numpy as np
from numpy.typing import NDArray

from sidecar.timebase import SAMPLE_RATE_HZ

PITCH_HZ = 140.0
PITCH_SWING = 0.15  # slow rise and fall of the melody, of the pitch
VIBRATO = 0.02
VIBRATO_HZ = 5.0
SYLLABLE_S = 0.3
#: Overtones are summed up to this frequency.
HIGHEST_HZ = 8000.0
PEAK = 0.5

#: The first three resonances of a, e, i, o, u in Hz (after Peterson and Barney, 1952), and how broad they are.
VOWELS_HZ = ((730, 1090, 2440), (530, 1840, 2480), (270, 2290, 3010), (570, 840, 2410), (300, 870, 2240))
RESONANCE_WIDTHS_HZ = (80, 100, 140)


def vowel_recording(seconds: float) -> bytes:
    """A 24 kHz mono 16-bit wav file of vowels, one a syllable; always the same."""
    samples = (vowels(seconds) * 32767).astype("<i2")
    file = io.BytesIO()
    with wave.open(file, "wb") as recording:
        recording.setnchannels(1)
        recording.setsampwidth(2)
        recording.setframerate(SAMPLE_RATE_HZ)
        recording.writeframes(samples.tobytes())
    return file.getvalue()


def vowels(seconds: float) -> NDArray[np.float64]:
    """Samples (S,) of overtones of a moving pitch, each as loud as the resonances of the vowel let it through."""
    time = np.arange(int(seconds * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ  # (S,) in s
    melody = PITCH_SWING * np.sin(2 * np.pi * 0.4 * time)
    pitch = PITCH_HZ * (1 + melody + VIBRATO * np.sin(2 * np.pi * VIBRATO_HZ * time))
    phase = 2 * np.pi * np.cumsum(pitch) / SAMPLE_RATE_HZ
    syllable = time / SYLLABLE_S
    resonances = np.array(VOWELS_HZ)[syllable.astype(int) % len(VOWELS_HZ)]  # (S, 3)
    sound = np.zeros_like(time)
    for overtone in range(1, int(HIGHEST_HZ / pitch.max()) + 1):
        sound += _resonance(overtone * pitch, resonances) / overtone * np.sin(overtone * phase)
    sound *= np.sin(np.pi * (syllable % 1)) ** 0.5  # each syllable swells, fades
    loudest = float(np.abs(sound).max())
    return sound * (PEAK / loudest)


def _resonance(frequency: NDArray[np.float64], centres: NDArray[np.int64]) -> NDArray[np.float64]:
    """How much of a frequency (S,) passes the three resonances (S, 3)."""
    distance = (frequency[:, None] - centres) / np.array(RESONANCE_WIDTHS_HZ)
    passed: NDArray[np.float64] = 0.02 + (1 / (1 + distance**2)).sum(axis=1)
    return passed
