"""The voice folder: NAME.wav, NAME.flac ... put there by people or by uploads."""

from __future__ import annotations

import logging
import os
import tempfile
import threading
from pathlib import Path, PurePath

from sidecar.audio.decode import container_of
from sidecar.errors import Conflict
from sidecar.voice_names import DEFAULT_VOICE, is_voice_name
from sidecar.voices.whole_file import write_whole

log = logging.getLogger(__name__)

MAX_VOICES = 1000

#: The decoder's word for a container -> what such a file is called.
_SUFFIXES = {
    "wav": ".wav",
    "flac": ".flac",
    "ogg": ".ogg",
    "mp3": ".mp3",
    "aac": ".aac",
    "aiff": ".aiff",
    "mov": ".m4a",
    "matroska": ".webm",
}
#: Other files may lie in the folder and are no voices.
_SOUND = {*_SUFFIXES.values(), ".oga", ".opus", ".aif", ".mp4", ".mka", ".mkv"}


class VoiceFolder:
    """Looks anew every time, since files come and go.

    Args:
        path: the folder, which need not exist yet; without one a temporary one is made when something is put in.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._changing = threading.Lock()
        self._told: set[str] = set()

    def recordings(self) -> dict[str, Path]:
        """Name -> file. Of several files of one name the first in the alphabet counts."""
        return self._allowed(self._files())

    def find(self, name: str) -> Path | None:
        return self._allowed(self._files(name)).get(name)

    def require_room(self) -> None:
        """
        Raises:
            Conflict: the folder is full.
        """
        if len({path.stem for path in self._files()}) >= MAX_VOICES:
            raise Conflict(
                f"there are {MAX_VOICES:,} voices, and no more are taken; DELETE /v1/voices/NAME makes room",
                code="too_many_voices",
            )

    def keep(self, name: str, data: bytes) -> Path:
        """The file of that name: a new one with these bytes, or the one that was there, whatever its bytes.

        Raises:
            Conflict: the folder is full.
            OSError: it cannot be written.
        """
        with self._changing:
            folder = self._made()
            there = sorted(self._files(name))
            if there:
                return there[0]
            self.require_room()
            path = folder / f"{name}{_suffix(data)}"
            write_whole(path, data)
            return path

    def remove(self, name: str) -> None:
        """Removes every file of that name.

        Raises:
            OSError: one cannot be removed.
        """
        with self._changing:
            for path in self._files(name):
                path.unlink(missing_ok=True)

    def close(self) -> None:
        """A temporary folder goes, with what is in it."""
        with self._changing:
            if self._temporary is not None:
                self._temporary.cleanup()
            self._temporary = None

    def _allowed(self, files: list[Path]) -> dict[str, Path]:
        found: dict[str, Path] = {}
        for path in sorted(files):
            if path.stem == DEFAULT_VOICE:
                self._tell_once(f"{path} is left out of the voices: {DEFAULT_VOICE!r} stands for --voice; rename it")
            elif self._leads_out(path):
                self._tell_once(f"{path} is left out of the voices: it leads out of the folder; put the file itself in")
            elif path.stem in found:
                self._tell_once(f"{path} is left out of the voices: {found[path.stem].name} has its name")
            else:
                found[path.stem] = path
        return found

    def _files(self, name: str = "") -> list[Path]:
        """All that may be voices, or those of one name."""
        folder = self._there()
        if folder is None:
            return []
        try:
            with os.scandir(folder) as entries:
                return [
                    Path(entry.path)
                    for entry in entries
                    if entry.name.startswith(f"{name}." if name else "") and _may_be_a_voice(entry)
                ]
        except FileNotFoundError:
            return []
        except OSError as error:
            self._tell_once(f"the voice folder cannot be read: {error}")
            return []

    def _there(self) -> Path | None:
        if self._path is not None:
            return self._path
        return None if self._temporary is None else Path(self._temporary.name)

    def _made(self) -> Path:
        if self._path is None and self._temporary is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="voices-")
        folder = self._there()
        assert folder is not None, "one of the two was made"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _leads_out(self, path: Path) -> bool:
        return path.is_symlink() and not path.resolve().is_relative_to(path.parent.resolve())

    def _tell_once(self, message: str) -> None:
        if message not in self._told:
            self._told.add(message)
            log.warning("%s", message)


def _may_be_a_voice(entry: os.DirEntry[str]) -> bool:
    name = PurePath(entry.name)
    try:
        return name.suffix.lower() in _SOUND and is_voice_name(name.stem) and entry.is_file()
    except OSError:  # a link in a circle
        return False


def _suffix(data: bytes) -> str:
    container = container_of(data)
    assert container in _SUFFIXES, f"a recording that was decoded is in the container {container}"
    return _SUFFIXES[container]
