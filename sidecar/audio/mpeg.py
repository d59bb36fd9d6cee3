"""What stands around MPEG audio frames of 24 kHz mono: AAC's ADTS headers, and the frame that tells an MP3's length."""

from __future__ import annotations

import struct

#: A frame of MPEG-2 Layer III (MPEG-1's has 1,152).
MP3_FRAME_SAMPLES = 576
#: Samples of silence that LAME puts first, and those that every decoder's filters add.
LAME_DELAY_SAMPLES = 576
DECODER_DELAY_SAMPLES = 529

#: MPEG-2, Layer III, no CRC; 64 kbit/s, 24 kHz; mono (ISO/IEC 13818-3, 2.4.2.3).
_MP3_HEADER = bytes((0xFF, 0xF3, 0x84, 0xC4))
_MP3_FRAME_BYTES = 192  # 64 kbit/s for 24 ms
_MP3_SIDE_INFO_BYTES = 9
_HAS_FRAMES, _HAS_BYTES = 1, 2


def mp3_info_frame(samples: int, frames: int, size_bytes: int) -> bytes:
    """The frame that goes before all others of a whole file: players read it, and leave out the silence it tells of.

    It has the form that Xing began and LAME went on with ("Mp3 Info Tag revision 1", G. Bouvigne).

    Args:
        samples: fed to the encoder, all in all.
        frames, size_bytes: that came out of it.
    """
    counts = struct.pack(">III", _HAS_FRAMES | _HAS_BYTES, frames, _MP3_FRAME_BYTES + size_bytes)
    silence_after = frames * MP3_FRAME_SAMPLES - LAME_DELAY_SAMPLES - samples
    silence = (LAME_DELAY_SAMPLES << 12 | silence_after).to_bytes(3, "big")
    # name (9), constant bit rate (1), 10 fields' bytes of loudness and flags, 64 kbit/s (1), the silence (3), 12 more
    lame = b"LAME     " + b"\x01" + bytes(10) + b"\x40" + silence + bytes(12)
    frame = _MP3_HEADER + bytes(_MP3_SIDE_INFO_BYTES) + b"Info" + counts + lame
    return frame.ljust(_MP3_FRAME_BYTES, b"\0")


def adts_header(packet_bytes: int) -> bytes:
    """The 7 bytes before one AAC packet (ISO/IEC 13818-7, 6.2): low complexity, no CRC."""
    fields = (
        (12, 0xFFF), (1, 0), (2, 0), (1, 1),  # sync word, MPEG-4, layer, no CRC
        (2, 1), (4, 6), (1, 0), (3, 1), (4, 0),  # low complexity, 24 kHz, private, mono, origin and copyright
        (13, 7 + packet_bytes), (11, 0x7FF), (2, 0),  # length, variable bit rate, one packet
    )  # fmt: skip
    bits = 0
    for width, value in fields:
        bits = bits << width | value
    return bits.to_bytes(7, "big")
