"""Files that others may read while they are written."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from sidecar.voices.whole_file import write_whole


def test_a_file_is_never_seen_half_written(tmp_path: Path) -> None:
    path, whole = tmp_path / "deep" / "voice.wav", {letter * 2_000_000 for letter in (b"a", b"b")}
    write_whole(path, next(iter(whole)))
    seen: list[bool] = []
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            seen.append(path.read_bytes() in whole)

    looking = threading.Thread(target=look)
    looking.start()
    for _ in range(20):
        for data in whole:
            write_whole(path, data)
    done.set()
    looking.join()
    assert all(seen) and len(seen) > 1


def test_of_a_file_that_cannot_be_written_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError("No space left on device")

    (tmp_path / "voice.wav").write_bytes(b"before")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_whole(tmp_path / "voice.wav", b"after")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"before"]
