"""Samples -> packets of one of FFmpeg's codecs, with no container around them."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
from av.audio.codeccontext import AudioCodecContext
from numpy.typing import NDArray

from sidecar.audio.pcm import pcm16
from sidecar.timebase import SAMPLE_RATE_HZ, SAMPLES_PER_FRAME


class CodecPackets:
    """One encoder of 24 kHz mono. It takes any number of samples and cuts its own frames from them.

    Args:
        context: of the codec; whoever made it opens it.
        sample_format: one that the codec takes.
        bit_rate: bits a second, where the codec loses something.
    """

    def __init__(self, context: AudioCodecContext, *, sample_format: str, bit_rate: int | None = None) -> None:
        context.sample_rate = SAMPLE_RATE_HZ
        context.time_base = Fraction(1, SAMPLE_RATE_HZ)
        context.layout = "mono"
        context.format = sample_format
        if bit_rate is not None:
            context.bit_rate = bit_rate
        self._context = context
        self._fed = False

    def feed(self, samples: NDArray[np.float32]) -> list[av.Packet]:
        if not samples.size:
            return []
        self._fed = True
        frame = av.AudioFrame.from_ndarray(pcm16(samples)[np.newaxis], format="s16", layout="mono")
        frame.sample_rate = SAMPLE_RATE_HZ
        return self._context.encode(frame)

    def finish(self) -> list[av.Packet]:
        """What the codec still holds. Where nothing was fed that is a mel frame of silence: no player opens a file of
        these formats without a packet.
        """
        packets = [] if self._fed else self.feed(np.zeros(SAMPLES_PER_FRAME, np.float32))
        return packets + self._context.encode(None)
