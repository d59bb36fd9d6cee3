"""Samples -> bytes that a listener can play, one small class a container. Everything is 16-bit mono, little-endian."""

from __future__ import annotations

import struct
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sidecar.audio.pcm import pcm16
from sidecar.timebase import SAMPLE_RATE_HZ

BYTES_PER_SAMPLE = 2
#: What a size field says while nobody knows the size; players then read until the end.
UNKNOWN_SIZE = 0xFFFFFFFF
#: RIFF's size field counts what follows it: everything but the first 8 of the header's 44 bytes.
_RIFF_OVERHEAD_BYTES = 36


def wav_header(samples: int | None) -> bytes:
    """The 44 bytes before the samples; `None` samples where their number is not known yet."""
    data_bytes = UNKNOWN_SIZE if samples is None else samples * BYTES_PER_SAMPLE
    riff_bytes = UNKNOWN_SIZE if samples is None else _RIFF_OVERHEAD_BYTES + data_bytes
    bytes_per_second = SAMPLE_RATE_HZ * BYTES_PER_SAMPLE
    form = (16, 1, 1, SAMPLE_RATE_HZ, bytes_per_second, BYTES_PER_SAMPLE, 8 * BYTES_PER_SAMPLE)
    return struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", riff_bytes, b"WAVE", b"fmt ", *form, b"data", data_bytes)


class Encoder(Protocol):
    """How speech is written: a header, then each piece of sound as it is made."""

    media_type: str
    suffix: str

    def header(self, samples: int | None) -> bytes:
        """What goes first; `None` where the number of samples is not known yet."""
        ...

    def feed(self, samples: NDArray[np.float32]) -> bytes: ...


class WavEncoder:
    media_type = "audio/wav"
    suffix = ".wav"

    def header(self, samples: int | None) -> bytes:
        return wav_header(samples)

    def feed(self, samples: NDArray[np.float32]) -> bytes:
        return pcm16(samples).tobytes()


class PcmEncoder:
    """Bare samples: their form travels in the media type."""

    media_type = f"audio/pcm; rate={SAMPLE_RATE_HZ}; channels=1; bits=16"
    suffix = ".pcm"

    def header(self, samples: int | None) -> bytes:  # noqa: ARG002
        return b""

    def feed(self, samples: NDArray[np.float32]) -> bytes:
        return pcm16(samples).tobytes()


#: By the name that `response_format` gives.
ENCODERS: dict[str, type[Encoder]] = {"wav": WavEncoder, "pcm": PcmEncoder}
