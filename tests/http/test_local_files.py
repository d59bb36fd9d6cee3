"""Recordings read by their path on this machine; what a client sees of it is in test_generate_refusals.py."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest

from sidecar.audio.local_files import LocalFiles
from sidecar.errors import NotFound


def open_files() -> list[str]:
    found = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # what lists them, or what earlier tests still close
            found.append(str(descriptor.readlink()))
    return found


@pytest.mark.parametrize("path", ["/proc/self/mem", "/proc/self", "/dev/zero"])
def test_what_cannot_be_read_as_a_file_is_not_found_and_leaves_nothing_open(path: str) -> None:
    with pytest.raises(NotFound, match="is not a file on this server"):
        LocalFiles((), any_folder=True, max_bytes=1000).read(path)
    assert str(Path(path).resolve()) not in open_files()


def test_a_file_is_read_whole(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(bytes(1000))
    assert LocalFiles((tmp_path,), any_folder=False, max_bytes=1000).read("a.wav") == bytes(1000)
