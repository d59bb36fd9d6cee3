"""Whether a checkpoint's file is there and is what was meant to be downloaded."""

from __future__ import annotations

import re
from pathlib import Path

from sidecar.errors import CheckpointError

#: What git leaves in the place of a large file until git-lfs has fetched it (git-lfs pointer specification, v1).
_POINTER = re.compile(rb"version https://git-lfs\.github\.com/spec/v1\n(?:.*\n)*?size (\d+)\n?", re.ASCII)
_WEB_PAGE = re.compile(rb"\s*<(?:!doctype html|html|\?xml|head|body)", re.IGNORECASE)

#: Enough of a file to see that it is one of these.
_LOOKED_AT_BYTES = 1024


def require_file(path: Path) -> Path:
    """`path` again, if a file of some content stands there that is not a stand-in for the wanted one.

    Raises:
        CheckpointError: it is missing or empty, a pointer of git-lfs, or a web page that was saved in its place.
    """
    try:
        if not path.is_file():
            what = "is a folder, where a file should be" if path.is_dir() else "is missing"
            raise CheckpointError(f"{path} {what}; the checkpoint folder needs it, so download the model again")
        with path.open("rb") as file:
            beginning = file.read(_LOOKED_AT_BYTES)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    if not beginning:
        raise CheckpointError(f"{path} is empty: its download was truncated; download the model again")
    if pointer := _POINTER.match(beginning):
        raise CheckpointError(
            f"{path} is a git-lfs pointer ({path.stat().st_size} bytes) to the real file "
            f"({int(pointer[1]):,} bytes); run 'git lfs pull' in its folder, or download the model with 'hf download'"
        )
    if _WEB_PAGE.match(beginning):
        raise CheckpointError(
            f"{path} is a web page ({path.stat().st_size:,} bytes), not the file: the download was answered with an "
            "error or a login; download the model again, for instance with 'hf download'"
        )
    return path
