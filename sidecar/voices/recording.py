"""A voice's recording: its bytes, known by their sha256."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from sidecar.audio.decode import Recording, decode_recording
from sidecar.errors import TooLarge
from sidecar.voices.features import MAX_SECONDS, require_usable

#: 30 s of 48 kHz stereo in 32 bits have 11.5 MB.
MAX_BYTES = 20_000_000
#: Decoded, all channels together: 30 s of 192 kHz stereo, 46 MB. In 0.2 MB of Ogg lie 0.5 GB of silent channels.
MAX_VALUES = 30 * 192_000 * 2


@dataclass(frozen=True)
class VoiceRecording:
    """A sound file, whatever it is called and wherever it lies."""

    data: bytes

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    def decoded(self) -> Recording:
        """
        Raises:
            UnsupportedMedia: no sound file.
            UnusableAudio: damaged, silent, of very many channels, or not of 1 to 30 s; decoding stops at the limits.
        """
        recording = decode_recording(self.data, max_seconds=MAX_SECONDS, max_values=MAX_VALUES)
        require_usable(recording.samples, recording.sample_rate_hz)
        return recording


def read_recording(path: Path) -> VoiceRecording:
    """
    Raises:
        OSError: the file cannot be read.
        TooLarge: it has more than 20 MB.
    """
    with path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    require_small(data)
    return VoiceRecording(data)


def require_small(data: bytes) -> None:
    """
    Raises:
        TooLarge: more bytes than a voice's recording may have.
    """
    if len(data) > MAX_BYTES:
        raise TooLarge(
            f"the recording has more than the {MAX_BYTES / 1e6:g} MB that are taken; "
            f"{MAX_SECONDS:g} s fit in less, as flac or 16-bit wav"
        )
