"""FLAC, MP3, AAC and Opus: packets of FFmpeg's codecs, and around them as little container as a stream can do with.

FFmpeg's own muxers are not used: that of Ogg keeps a page back until the next one is there, and those of FLAC and MP3
complete a whole file's header by going back in it.
"""

from __future__ import annotations

import hashlib
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from sidecar.audio.codec import CodecPackets
from sidecar.audio.mpeg import (
    DECODER_DELAY_SAMPLES,
    LAME_DELAY_SAMPLES,
    MP3_FRAME_SAMPLES,
    adts_header,
    mp3_info_frame,
)
from sidecar.audio.ogg import OggOpusPages
from sidecar.audio.pcm import pcm16
from sidecar.timebase import SAMPLES_PER_FRAME


class FlacEncoder:
    """Lossless. A block is one mel frame, so that every chunk of speech is whole blocks and nothing waits."""

    media_type: ClassVar[str] = "audio/flac"
    suffix: ClassVar[str] = ".flac"
    #: None of what token2wav makes; of any other number of samples the rest of a block.
    delay_samples: ClassVar[int] = SAMPLES_PER_FRAME - 1
    costly: ClassVar[bool] = True

    #: "fLaC", then one metadata block, the last: STREAMINFO, of 34 bytes (RFC 9639, section 8).
    _OPENING = b"fLaC\x80\x00\x00\x22"

    def __init__(self) -> None:
        self._packets = CodecPackets("flac", sample_format="s16", options={"frame_size": str(SAMPLES_PER_FRAME)})
        self._digest = hashlib.md5(usedforsecurity=False)

    def header(self, samples: int | None) -> bytes:
        stream_info = self._packets.description  # has the number of samples once it is finished
        if not samples:
            return self._OPENING + stream_info
        # its digest of the samples is wrong by then: FFmpeg (8 and 9) closes it twice
        return self._OPENING + stream_info[: -self._digest.digest_size] + self._digest.digest()

    def feed(self, samples: NDArray[np.float32]) -> bytes:
        self._digest.update(pcm16(samples).tobytes())
        return b"".join(self._packets.feed(samples))

    def finish(self) -> bytes:
        return b"".join(self._packets.finish())


class Mp3Encoder:
    """MPEG-2 Layer III, 64 kbit/s constant. Every frame holds its own bits (no reservoir), so LAME keeps none back.

    A whole file has the exact length: its first frame tells players which silence to leave out. A streamed one cannot
    tell, and begins with 1,105 samples of silence (46 ms) and ends with the rest of a frame.
    """

    media_type: ClassVar[str] = "audio/mpeg"
    suffix: ClassVar[str] = ".mp3"
    #: The silence at the beginning, a frame that LAME looks ahead, and the rest of one.
    delay_samples: ClassVar[int] = LAME_DELAY_SAMPLES + DECODER_DELAY_SAMPLES + 2 * MP3_FRAME_SAMPLES - 1
    costly: ClassVar[bool] = True

    def __init__(self) -> None:
        # 7: half the CPU time of the default, 5, at no less signal-to-noise ratio on speech
        options = {"reservoir": "0", "compression_level": "7"}
        self._packets = CodecPackets("libmp3lame", sample_format="s16p", bit_rate=64_000, options=options)
        self._frames = self._size_bytes = 0

    def header(self, samples: int | None) -> bytes:
        return b"" if samples is None else mp3_info_frame(samples, self._frames, self._size_bytes)

    def feed(self, samples: NDArray[np.float32]) -> bytes:
        return self._counted(self._packets.feed(samples))

    def finish(self) -> bytes:
        return self._counted(self._packets.finish())

    def _counted(self, packets: list[bytes]) -> bytes:
        sound = b"".join(packets)
        self._frames += len(packets)
        self._size_bytes += len(sound)
        return sound


class AacEncoder:
    """AAC-LC in ADTS, 64 kbit/s. The file begins with 1,024 samples of silence and ends with the rest of a frame:

    ADTS has no field that says what to leave out.
    """

    media_type: ClassVar[str] = "audio/aac"
    suffix: ClassVar[str] = ".aac"
    frame_samples: ClassVar[int] = 1024
    #: The frame with which every file begins, one that the encoder looks ahead, and the rest of one.
    delay_samples: ClassVar[int] = 3 * frame_samples - 1
    costly: ClassVar[bool] = True

    def __init__(self) -> None:
        # the other coder, twoloop, takes twice the CPU time for less signal-to-noise ratio on speech
        self._packets = CodecPackets("aac", sample_format="fltp", bit_rate=64_000, options={"aac_coder": "fast"})

    def header(self, samples: int | None) -> bytes:  # noqa: ARG002
        return b""

    def feed(self, samples: NDArray[np.float32]) -> bytes:
        return self._framed(self._packets.feed(samples))

    def finish(self) -> bytes:
        return self._framed(self._packets.finish())

    def _framed(self, packets: list[bytes]) -> bytes:
        return b"".join(adts_header(len(packet)) + packet for packet in packets)


class OpusEncoder:
    """Opus in Ogg, about 48 kbit/s, in packets of one mel frame (20 ms), a page or more for each chunk."""

    media_type: ClassVar[str] = "audio/ogg; codecs=opus"
    suffix: ClassVar[str] = ".opus"
    #: What the encoder looks ahead, 6.5 ms, and the rest of a packet: token2wav's chunks are whole packets.
    delay_samples: ClassVar[int] = 156 + SAMPLES_PER_FRAME - 1
    costly: ClassVar[bool] = True

    def __init__(self) -> None:
        # 5: from 7 on libopus also tells music from speech, at three times the CPU time
        options = {"application": "audio", "frame_duration": "20", "compression_level": "5"}
        self._packets = CodecPackets("libopus", sample_format="s16", bit_rate=48_000, options=options)
        self._pages = OggOpusPages(self._packets.description)
        self._samples = 0

    def header(self, samples: int | None) -> bytes:  # noqa: ARG002  the last page says where the sound ends
        return self._pages.header()

    def feed(self, samples: NDArray[np.float32]) -> bytes:
        self._samples += samples.size
        return self._pages.write(self._packets.feed(samples))

    def finish(self) -> bytes:
        return self._pages.finish(self._packets.finish(), self._samples)
