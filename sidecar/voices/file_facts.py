"""What the recording in a file is, worked out once for as long as the file is left alone."""

from __future__ import annotations

import logging
import os
import stat
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from sidecar.errors import TooLarge, UnsupportedMedia, UnusableAudio
from sidecar.voices.folder import MAX_VOICES
from sidecar.voices.recording import read_recording

log = logging.getLogger(__name__)

#: What changes when a file is replaced or written to.
_State = tuple[int, int, int, int, int]


@dataclass(frozen=True)
class FileFacts:
    """Of a recording that can be a voice; `problem` says why it cannot."""

    sha256: str = ""
    seconds: float = 0.0
    problem: str | None = None


class KnownFiles:
    """Facts by path; a file that changed is read again. May be asked from several threads."""

    def __init__(self) -> None:
        self._examined = lru_cache(maxsize=2 * MAX_VOICES)(_examined)

    def facts(self, path: Path) -> FileFacts:
        """Reads and decodes where it must; what cannot be a voice is logged, once for each state of the file."""
        try:
            return self._examined(path, _state(path.stat()))
        except OSError as error:  # it may be readable the next time
            return _unusable(path, f"it cannot be read ({error.strerror or error})")


def _examined(path: Path, state: _State) -> FileFacts:
    if not stat.S_ISREG(state[0]):
        return _unusable(path, "it is no file")
    try:
        recording = read_recording(path)
        return FileFacts(recording.sha256, recording.decoded().seconds)
    except (UnsupportedMedia, UnusableAudio, TooLarge) as error:
        return _unusable(path, error.message)


def _unusable(path: Path, problem: str) -> FileFacts:
    log.warning("%s is left out of the voices: %s", path, problem)
    return FileFacts(problem=problem)


def _state(status: os.stat_result) -> _State:
    # the inode's number and time of change: a file's own time, and its size, may be what they were
    return status.st_mode, status.st_dev, status.st_ino, status.st_size, status.st_ctime_ns
