"""Recordings that a request names by their path on this machine: which may be read, and reading them."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from sidecar.errors import BadRequest, NotFound, PathNotPermitted, TooLarge


@dataclass(frozen=True)
class LocalFiles:
    """
    Args:
        folders: where files may lie; a relative path is taken against the first.
        any_folder: every readable file of the machine is allowed, as long as `folders` is empty.
        max_bytes: of one file.
    """

    folders: tuple[Path, ...]
    any_folder: bool
    max_bytes: int

    def read(self, name: str) -> bytes:
        """The file's bytes. Blocks on the disk alone: pipes, devices and sockets are never opened for reading.

        Raises:
            BadRequest: no file can have this name.
            PathNotPermitted: outside the folders, whether or not there is such a file.
            NotFound: allowed, but no file.
            TooLarge: more than `max_bytes`.
        """
        if not name or "\0" in name:
            raise BadRequest("audio_path must be the path of a file, without NUL characters", param="audio_path")
        path = self._permitted(name)
        try:
            # not blocking: opening a pipe would wait for its other end
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        except PermissionError as error:
            raise self._refusal(name, "the server's user may not read it") from error
        except OSError as error:
            raise self._missing(name) from error
        # a folder cannot even be wrapped into a file
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise self._missing(name)
        try:
            with os.fdopen(descriptor, "rb") as file:
                data = file.read(self.max_bytes + 1)
        except OSError as error:  # some of /proc, or a failing disk
            raise self._missing(name) from error
        if len(data) > self.max_bytes:
            raise TooLarge(
                f"audio_path names a file above the limit of {self.max_bytes:,} bytes; send a shorter recording",
                param="audio_path",
            )
        return data

    def _permitted(self, name: str) -> Path:
        """Where the path leads once `..` and symbolic links are followed."""
        if not self.folders and not self.any_folder:
            raise self._refusal(name, "this server reads no files; send the recording as multipart/form-data")
        base = self.folders[0] if self.folders else Path.cwd()
        try:
            path = (base / name).resolve()
        except (OSError, RuntimeError) as error:  # a loop of links, or a name too long
            if self.folders:
                raise self._refusal(name, "it leads nowhere") from error
            raise self._missing(name) from error
        if self.folders and not any(path.is_relative_to(folder.resolve()) for folder in self.folders):
            raise self._refusal(name, "it is not in a folder given with --allowed-audio-path")
        return path

    def _refusal(self, name: str, why: str) -> PathNotPermitted:
        return PathNotPermitted(f"audio_path {_shown(name)} is not permitted: {why}", param="audio_path")

    def _missing(self, name: str) -> NotFound:
        return NotFound(f"audio_path {_shown(name)} is not a file on this server", param="audio_path")


def _shown(name: str) -> str:
    return repr(name if len(name) <= 200 else f"{name[:197]}...")
