"""Samples -> packets of one of FFmpeg's codecs, with no container around them."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

import av
import numpy as np
from numpy.typing import NDArray

from sidecar.audio.pcm import pcm16
from sidecar.timebase import SAMPLE_RATE_HZ, SAMPLES_PER_FRAME


class CodecPackets:
    """One encoder of 24 kHz mono. It takes any number of samples and cuts its own frames from them.

    Args:
        name: FFmpeg's for the codec.
        sample_format: one that the codec takes.
        bit_rate: bits a second, where the codec loses something.
        options: the codec's own.
    """

    def __init__(
        self, name: str, *, sample_format: str, options: Mapping[str, str], bit_rate: int | None = None
    ) -> None:
        context = av.CodecContext.create(name, "w")
        context.sample_rate = SAMPLE_RATE_HZ
        context.time_base = Fraction(1, SAMPLE_RATE_HZ)
        context.layout = "mono"
        context.format = sample_format
        context.options = dict(options)
        if bit_rate is not None:
            context.bit_rate = bit_rate
        context.open()
        self._context = context
        self._fed = False

    @property
    def description(self) -> bytes:
        """What a decoder must know first: FLAC's STREAMINFO, complete after `finish`; Opus' identification header."""
        return bytes(self._context.extradata or b"")

    def feed(self, samples: NDArray[np.float32]) -> list[bytes]:
        if not samples.size:
            return []
        self._fed = True
        frame = av.AudioFrame.from_ndarray(pcm16(samples)[np.newaxis], format="s16", layout="mono")
        frame.sample_rate = SAMPLE_RATE_HZ
        return [bytes(packet) for packet in self._context.encode(frame)]

    def finish(self) -> list[bytes]:
        """What the codec still holds. Where nothing was fed that is a mel frame of silence: no player opens a file of
        these formats without a packet.
        """
        packets = [] if self._fed else self.feed(np.zeros(SAMPLES_PER_FRAME, np.float32))
        # FLAC's last packet is empty and says only that the description is complete
        return packets + [bytes(packet) for packet in self._context.encode(None) if packet.size]
