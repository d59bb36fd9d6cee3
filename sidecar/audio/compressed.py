"""FLAC, MP3, AAC and Opus: FFmpeg's codecs, and FFmpeg's containers around all but Opus."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import ClassVar

import av
import numpy as np
from numpy.typing import NDArray

from sidecar.audio.codec import CodecPackets
from sidecar.audio.ogg import OggOpusPages
from sidecar.timebase import SAMPLES_PER_FRAME

#: A frame of MPEG-2 Layer III (MPEG-1's has 1,152).
_MP3_FRAME_SAMPLES = 576
#: Samples of silence that LAME puts first, and those that every decoder's filters add.
_MP3_SILENCE_SAMPLES = 576 + 529
_AAC_FRAME_SAMPLES = 1024


class _Outlet:
    """What the container of a stream is written to. One cannot go back in it, and the container knows."""

    def __init__(self) -> None:
        self._written = bytearray()

    def write(self, data: bytes) -> int:
        self._written += data
        return len(data)

    def take(self) -> bytes:
        """What was written since the last time."""
        taken, self._written = bytes(self._written), bytearray()
        return taken


class MuxedEncoder:
    """A codec in a container of FFmpeg's. That of a whole file is completed at the end, where its length is known."""

    costly: ClassVar[bool] = True
    container: ClassVar[str]
    container_options: ClassVar[Mapping[str, str]] = {}
    codec: ClassVar[str]
    codec_options: ClassVar[Mapping[str, str]]
    sample_format: ClassVar[str]
    bit_rate: ClassVar[int | None] = None

    def __init__(self, *, whole: bool) -> None:
        self._file: io.BytesIO | _Outlet = io.BytesIO() if whole else _Outlet()
        options = {"flush_packets": "1", **self.container_options}
        self._container = av.open(self._file, "w", format=self.container, options=options)
        self._stream = self._container.add_stream(self.codec, options=dict(self.codec_options))
        context = self._stream.codec_context
        self._packets = CodecPackets(context, sample_format=self.sample_format, bit_rate=self.bit_rate)
        self._container.start_encoding()

    def header(self) -> bytes:
        return self._given_out()

    def feed(self, samples: NDArray[np.float32]) -> bytes:
        self._mux(self._packets.feed(samples))
        return self._given_out()

    def finish(self) -> bytes:
        self._mux(self._packets.finish())
        self._container.close()
        return self._given_out(complete=True)

    def close(self) -> None:
        """Container and codec hold each other: without this they stay until the garbage is collected, 7 MB for FLAC."""
        self._container.close()

    def _mux(self, packets: list[av.Packet]) -> None:
        for packet in packets:
            packet.stream = self._stream
            self._container.mux(packet)

    def _given_out(self, *, complete: bool = False) -> bytes:
        if isinstance(self._file, _Outlet):
            return self._file.take()
        return self._file.getvalue() if complete else b""


class FlacEncoder(MuxedEncoder):
    """Lossless. A block is one mel frame, so that every chunk of speech is whole blocks and nothing waits."""

    media_type: ClassVar[str] = "audio/flac"
    suffix: ClassVar[str] = ".flac"
    #: None of what token2wav makes; of any other number of samples the rest of a block.
    delay_samples: ClassVar[int] = SAMPLES_PER_FRAME - 1

    container = "flac"
    container_options: ClassVar[Mapping[str, str]] = {"metadata_header_padding": "0"}  # would be 8 KB of zeros
    codec = "flac"
    codec_options: ClassVar[Mapping[str, str]] = {"frame_size": str(SAMPLES_PER_FRAME)}
    sample_format = "s16"


class Mp3Encoder(MuxedEncoder):
    """MPEG-2 Layer III, 64 kbit/s constant. Every frame holds its own bits (no reservoir), so LAME keeps none back.

    A whole file of whole mel frames has the exact length: its first frame tells players which silence to leave out. A
    streamed one cannot tell, and begins with 1,105 samples of silence (46 ms) and ends with the rest of a frame.
    """

    media_type: ClassVar[str] = "audio/mpeg"
    suffix: ClassVar[str] = ".mp3"
    #: The silence at the beginning, a frame that LAME looks ahead, and the rest of one.
    delay_samples: ClassVar[int] = _MP3_SILENCE_SAMPLES + 2 * _MP3_FRAME_SAMPLES - 1

    container = "mp3"
    codec = "libmp3lame"
    # 7: half the CPU time of the default, 5, at no less signal-to-noise ratio on speech
    codec_options: ClassVar[Mapping[str, str]] = {"reservoir": "0", "compression_level": "7"}
    sample_format = "s16p"
    bit_rate = 64_000


class AacEncoder(MuxedEncoder):
    """AAC-LC in ADTS, 64 kbit/s. The file begins with 1,024 samples of silence and ends with the rest of a frame:

    ADTS has no field that says what to leave out.
    """

    media_type: ClassVar[str] = "audio/aac"
    suffix: ClassVar[str] = ".aac"
    #: The frame with which every file begins, one that the encoder looks ahead, and the rest of one.
    delay_samples: ClassVar[int] = 3 * _AAC_FRAME_SAMPLES - 1

    container = "adts"
    codec = "aac"
    # the other coder, twoloop, takes twice the CPU time for less signal-to-noise ratio on speech
    codec_options: ClassVar[Mapping[str, str]] = {"aac_coder": "fast"}
    sample_format = "fltp"
    bit_rate = 64_000


class OpusEncoder:
    """Opus in Ogg, about 48 kbit/s, in packets of one mel frame (20 ms), a page or more for each chunk."""

    media_type: ClassVar[str] = "audio/ogg; codecs=opus"
    suffix: ClassVar[str] = ".opus"
    #: What the encoder looks ahead, 6.5 ms, and the rest of a packet: token2wav's chunks are whole packets.
    delay_samples: ClassVar[int] = 156 + SAMPLES_PER_FRAME - 1
    costly: ClassVar[bool] = True

    def __init__(self, *, whole: bool) -> None:  # noqa: ARG002  the last page says where the sound ends, in both
        context = av.CodecContext.create("libopus", "w")
        # 5: from 7 on libopus also tells music from speech, at three times the CPU time
        context.options = {"application": "audio", "frame_duration": "20", "compression_level": "5"}
        self._packets = CodecPackets(context, sample_format="s16", bit_rate=48_000)
        context.open()
        self._pages = OggOpusPages(bytes(context.extradata or b""))
        self._samples = 0

    def header(self) -> bytes:
        return self._pages.header()

    def feed(self, samples: NDArray[np.float32]) -> bytes:
        self._samples += samples.size
        return self._pages.write([bytes(packet) for packet in self._packets.feed(samples)])

    def finish(self) -> bytes:
        return self._pages.finish([bytes(packet) for packet in self._packets.finish()], self._samples)

    def close(self) -> None:
        """The codec goes with this object."""
