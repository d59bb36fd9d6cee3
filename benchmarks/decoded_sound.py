"""What players make of the formats that the server writes: decoded by FFmpeg and by libsndfile."""

from __future__ import annotations

import io
from contextlib import suppress

import av
import numpy as np
import soundfile
from numpy.typing import NDArray

from sidecar.audio.resample import resample
from sidecar.timebase import SAMPLE_RATE_HZ, SAMPLES_PER_FRAME

#: Both take what they hear from the first bytes; a prefix of an AAC or MP3 file may be too short for that.
_FFMPEG_NAMES = {"aac": "aac", "mp3": "mp3", "opus": "ogg", "flac": "flac", "wav": "wav"}
#: Silence that a decoder gives first, because the file cannot say that it is none of the sound.
STREAMED_SILENCE = {"mp3": 1105, "aac": 1024}
WHOLE_SILENCE = {"aac": 1024}

Samples = NDArray[np.float32]


def by_ffmpeg(data: bytes, name: str) -> Samples:
    """All that can be decoded, (S,): at 24 kHz, Opus at 48 kHz; nothing where there is no whole packet yet."""
    if name == "pcm":
        return np.frombuffer(data, "<i2").astype(np.float32) / np.float32(32768)
    parts: list[Samples] = []
    # a stream without a packet, and one that breaks off within a packet
    with suppress(av.FFmpegError, IndexError), av.open(io.BytesIO(data), format=_FFMPEG_NAMES[name]) as file:
        to_float = av.AudioResampler(format="flt")
        for frame in file.decode(audio=0):
            parts += [part.to_ndarray()[0] for part in to_float.resample(frame)]
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)


def at_24_khz(samples: Samples, name: str) -> Samples:
    return resample(samples, 48_000, SAMPLE_RATE_HZ) if name == "opus" else samples


def by_libsndfile(data: bytes, name: str) -> Samples | None:
    """All that can be decoded, (S,) at 24 kHz; None where libsndfile does not know the format."""
    if name == "aac":
        return None
    if name == "pcm":
        return by_ffmpeg(data, name)
    parts: list[Samples] = []
    with soundfile.SoundFile(io.BytesIO(data)) as file:
        assert (file.samplerate, file.channels) == (SAMPLE_RATE_HZ, 1)
        # it cannot go to the end of a FLAC file that does not say its length; everything before that is read
        with suppress(soundfile.LibsndfileError):
            while len(block := file.read(SAMPLES_PER_FRAME, dtype="float32")):
                parts.append(block)
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)


def signal_to_noise_db(truth: Samples, decoded: Samples) -> float:
    """Over what both have."""
    samples = min(truth.size, decoded.size)
    noise = decoded[:samples] - truth[:samples]
    return float(10 * np.log10(np.square(truth[:samples]).sum() / (np.square(noise).sum() + 1e-12)))
