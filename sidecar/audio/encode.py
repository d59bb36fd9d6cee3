"""Samples -> bytes that a listener can play, one small class a container. Everything is 24 kHz mono."""

from __future__ import annotations

import struct
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from sidecar.audio.compressed import AacEncoder, FlacEncoder, Mp3Encoder, OpusEncoder
from sidecar.audio.pcm import pcm16
from sidecar.timebase import SAMPLE_RATE_HZ

BYTES_PER_SAMPLE = 2
#: What a size field says while nobody knows the size; players then read until the end.
UNKNOWN_SIZE = 0xFFFFFFFF
#: RIFF's size field counts what follows it: everything but the first 8 of the header's 44 bytes.
_RIFF_OVERHEAD_BYTES = 36


class Encoder(Protocol):
    """How one reply is written: a header, then each piece of sound as it is made, then what was still held back.

    Of the samples that were fed, all but the newest `delay_samples` can be decoded from the bytes given out so far.

    Args:
        whole: nobody listens yet, so bytes may be kept until the end, and the file then says its length where its
            format can. The sound is the same.
    """

    media_type: ClassVar[str]
    suffix: ClassVar[str]
    delay_samples: ClassVar[int]
    #: Takes milliseconds of CPU for a second of sound, which the event loop must not wait for.
    costly: ClassVar[bool]

    def __init__(self, *, whole: bool) -> None: ...

    def header(self) -> bytes:
        """What can go out before any sound."""
        ...

    def feed(self, samples: NDArray[np.float32]) -> bytes:
        """Any number of samples (S,), clipped to [-1, 1]."""
        ...

    def finish(self) -> bytes:
        """The end of the sound; nothing can be fed after it."""
        ...

    def close(self) -> None:
        """Frees what it holds, finished or not; a second call does nothing."""
        ...


def wav_header(samples: int | None) -> bytes:
    """The 44 bytes before the samples; `None` samples where their number is not known yet."""
    data_bytes = UNKNOWN_SIZE if samples is None else samples * BYTES_PER_SAMPLE
    riff_bytes = UNKNOWN_SIZE if samples is None else _RIFF_OVERHEAD_BYTES + data_bytes
    bytes_per_second = SAMPLE_RATE_HZ * BYTES_PER_SAMPLE
    form = (16, 1, 1, SAMPLE_RATE_HZ, bytes_per_second, BYTES_PER_SAMPLE, 8 * BYTES_PER_SAMPLE)
    return struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", riff_bytes, b"WAVE", b"fmt ", *form, b"data", data_bytes)


class PcmEncoder:
    """Bare 16-bit samples, little-endian: their form travels in the media type."""

    media_type: ClassVar[str] = f"audio/pcm; rate={SAMPLE_RATE_HZ}; channels=1; bits=16"
    suffix: ClassVar[str] = ".pcm"
    delay_samples: ClassVar[int] = 0
    costly: ClassVar[bool] = False

    def __init__(self, *, whole: bool) -> None:
        self._whole = whole

    def header(self) -> bytes:
        return b""

    def feed(self, samples: NDArray[np.float32]) -> bytes:
        return pcm16(samples).tobytes()

    def finish(self) -> bytes:
        return b""

    def close(self) -> None:
        """Holds nothing that would not go with it."""


class WavEncoder(PcmEncoder):
    """The same samples after a RIFF header."""

    media_type: ClassVar[str] = "audio/wav"
    suffix: ClassVar[str] = ".wav"

    def __init__(self, *, whole: bool) -> None:
        super().__init__(whole=whole)
        self._sound = bytearray()

    def header(self) -> bytes:
        return b"" if self._whole else wav_header(None)

    def feed(self, samples: NDArray[np.float32]) -> bytes:
        if not self._whole:
            return super().feed(samples)
        self._sound += super().feed(samples)
        return b""

    def finish(self) -> bytes:
        return wav_header(len(self._sound) // BYTES_PER_SAMPLE) + self._sound if self._whole else b""


#: By the name that `response_format` gives.
ENCODERS: dict[str, type[Encoder]] = {
    "wav": WavEncoder,
    "pcm": PcmEncoder,
    "flac": FlacEncoder,
    "mp3": Mp3Encoder,
    "opus": OpusEncoder,
    "aac": AacEncoder,
}
