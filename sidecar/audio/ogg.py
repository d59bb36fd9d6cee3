"""Opus packets -> Ogg pages (RFC 3533, RFC 7845), given out as soon as their packets are there.

Libraries keep sound back. FFmpeg's muxer gives out a page when the next one begins: even with a page for each packet
(`page_duration`) that is 20 ms, and PyAV 18 cannot make the call that flushes it (`av_write_frame` without a packet).
libsndfile 1.2.2 stays 87 ms behind at the shortest page latency that it takes.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

from sidecar.timebase import SAMPLE_RATE_HZ, SAMPLES_PER_FRAME

#: Positions in Ogg Opus count samples at 48 kHz, whatever the rate of the sound.
_POSITIONS_PER_SAMPLE = 48_000 // SAMPLE_RATE_HZ
_PACKET_POSITIONS = SAMPLES_PER_FRAME * _POSITIONS_PER_SAMPLE

_FIRST_PAGE, _LAST_PAGE = 2, 4
#: A page has 255 segments at most, and the longest Opus packet, 1,275 bytes, takes six.
_PACKETS_IN_A_PAGE = 255 // 6
#: The same for every stream, so that the same speech is the same bytes.
_SERIAL = 1
_MIRRORED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


class OggOpusPages:
    """
    Args:
        identification: the Opus identification header, 19 bytes.
    """

    def __init__(self, identification: bytes) -> None:
        self._identification = identification
        (self._skipped_positions,) = struct.unpack_from("<H", identification, 10)
        self._packets_done = 0
        self._pages_done = 2

    def header(self) -> bytes:
        """The two pages with which every file begins."""
        vendor = b"step-audio-serve"
        tags = b"OpusTags" + struct.pack("<I", len(vendor)) + vendor + struct.pack("<I", 0)
        return _page([self._identification], flags=_FIRST_PAGE, position=0, number=0) + _page(
            [tags], flags=0, position=0, number=1
        )

    def write(self, packets: Sequence[bytes]) -> bytes:
        """Pages with these packets; nothing where there are none."""
        pages = b""
        for start in range(0, len(packets), _PACKETS_IN_A_PAGE):
            held = packets[start : start + _PACKETS_IN_A_PAGE]
            self._packets_done += len(held)
            pages += self._numbered(held, flags=0, position=self._packets_done * _PACKET_POSITIONS)
        return pages

    def finish(self, packets: Sequence[bytes], samples: int) -> bytes:
        """The last page. Its position says where the sound ends, though the last packet goes further."""
        end = self._skipped_positions + samples * _POSITIONS_PER_SAMPLE
        return self._numbered(packets, flags=_LAST_PAGE, position=end)

    def _numbered(self, packets: Sequence[bytes], *, flags: int, position: int) -> bytes:
        self._pages_done += 1
        return _page(packets, flags=flags, position=position, number=self._pages_done - 1)


def _page(packets: Sequence[bytes], *, flags: int, position: int, number: int) -> bytes:
    segments = b"".join(b"\xff" * (len(packet) // 255) + bytes((len(packet) % 255,)) for packet in packets)
    head = struct.pack("<4sBBqII", b"OggS", 0, flags, position, _SERIAL, number)
    tail = bytes((len(segments),)) + segments + b"".join(packets)
    checksum = _crc32(head + bytes(4) + tail)
    return head + struct.pack("<I", checksum) + tail


def _crc32(data: bytes) -> int:
    """Ogg's checksum: zlib's polynomial, but highest bit first, from 0, and not inverted at the end."""
    mirrored = zlib.crc32(data.translate(_MIRRORED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{mirrored:032b}"[::-1], 2)
