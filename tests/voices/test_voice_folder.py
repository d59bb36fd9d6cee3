"""The folder that people put recordings into."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from voice_parts import recording, sound_file, use

from sidecar.errors import Conflict, NotFound, VoiceUnavailable
from sidecar.voices import file_facts
from sidecar.voices.folder import VoiceFolder
from sidecar.voices.library import VoiceLibrary
from sidecar.voices.recording import VoiceRecording, read_recording
from sidecar.voices.voice import Voice

MakeLibrary = Callable[..., VoiceLibrary]


def dropped_in(library: VoiceLibrary) -> list[Voice]:
    return [voice for voice in use(library, VoiceLibrary.voices) if not voice.built_in]


def test_a_recording_that_is_dropped_in_is_a_voice_at_once(make_library: MakeLibrary, voice_dir: Path) -> None:
    async def ask(library: VoiceLibrary) -> list[str]:
        before = await library.voices()
        (voice_dir / "anna.wav").write_bytes(recording())
        (voice_dir / "Berta-2_x.FLAC").write_bytes(recording(form="FLAC"))
        await library.get("anna")
        return sorted({voice.name for voice in await library.voices()} - {voice.name for voice in before})

    assert use(make_library(voice_dir=voice_dir), ask) == ["Berta-2_x", "anna"]


def test_what_is_no_voice_is_left_out_with_one_line_in_the_log(
    make_library: MakeLibrary, voice_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    unusable = {
        "text.wav": b"not a voice",
        "empty.wav": b"",
        "short.wav": recording(seconds=0.5),
        "long.wav": recording(seconds=31),
        "huge.wav": b"RIFF" + bytes(20_000_000),
        "silent.wav": sound_file(np.zeros(32_000, np.float32)),
        "default.wav": recording(),
    }
    for name, data in unusable.items():
        (voice_dir / name).write_bytes(data)
    (voice_dir / "anna.wav").write_bytes(recording())
    # unremarkable: no sound files by their names
    for name in ("README.md", "anna.txt", ".hidden.wav", "no name.wav", "LICENSE"):
        (voice_dir / name).write_text("words")
    (voice_dir / "folder.wav").mkdir()
    os.mkfifo(voice_dir / "pipe.wav")

    async def list_often(library: VoiceLibrary) -> list[Voice]:
        return [await library.voices() for _ in range(3)][-1]

    with caplog.at_level(logging.WARNING):
        listed = use(make_library(voice_dir=voice_dir), list_often)
    assert [voice.name for voice in listed if not voice.built_in] == ["anna"]
    left_out = sorted(name for name in unusable for record in caplog.records if f"/{name} " in record.getMessage())
    assert left_out == sorted(unusable)


def test_asking_for_a_recording_that_cannot_be_used_says_why(make_library: MakeLibrary, voice_dir: Path) -> None:
    (voice_dir / "anna.wav").write_bytes(recording(seconds=0.5))
    library = make_library(voice_dir=voice_dir)

    async def ask(_: VoiceLibrary) -> None:
        with pytest.raises(VoiceUnavailable, match=r"'anna' cannot be used: .*0\.50 s; 1 to 30 s"):
            await library.get("anna")
        with pytest.raises(Conflict, match="choose another name"):
            await library.add("anna", recording())
        with pytest.raises(NotFound):
            await library.delete("anna")

    use(library, ask)
    assert (voice_dir / "anna.wav").exists()


def test_of_two_files_of_one_name_the_first_in_the_alphabet_speaks(
    make_library: MakeLibrary, voice_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (voice_dir / "anna.wav").write_bytes(recording(seconds=1.0))
    (voice_dir / "anna.flac").write_bytes(recording(seconds=2.0, form="FLAC"))
    assert [voice.seconds for voice in dropped_in(make_library(voice_dir=voice_dir))] == [2.0]
    assert "anna.wav is left out of the voices: anna.flac has its name" in caplog.text


def test_deleting_a_name_removes_all_its_files(make_library: MakeLibrary, voice_dir: Path) -> None:
    (voice_dir / "anna.wav").write_bytes(recording(seconds=1.0))
    (voice_dir / "anna.flac").write_bytes(recording(seconds=2.0, form="FLAC"))
    use(make_library(voice_dir=voice_dir), lambda library: library.delete("anna"))
    assert dropped_in(make_library(voice_dir=voice_dir)) == []


def test_links_are_followed_within_the_folder_only(
    make_library: MakeLibrary, voice_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "secret.wav").write_bytes(recording())
    (voice_dir / "anna.wav").write_bytes(recording())
    (voice_dir / "berta.wav").symlink_to("anna.wav")
    (voice_dir / "clara.wav").symlink_to("../secret.wav")
    (voice_dir / "doris.wav").symlink_to("doris.wav")
    assert [voice.name for voice in dropped_in(make_library(voice_dir=voice_dir))] == ["anna", "berta"]
    assert "clara.wav is left out of the voices: it leads out of the folder" in caplog.text
    with pytest.raises(Conflict, match=r"clara\.wav in the voice folder takes the name 'clara' and is no voice"):
        use(make_library(voice_dir=voice_dir), lambda library: library.add("clara", recording(200)))
    use(make_library(voice_dir=voice_dir), lambda library: library.delete("berta"))
    assert (voice_dir / "anna.wav").exists() and not (voice_dir / "berta.wav").exists()


def test_a_voice_of_the_checkpoint_may_be_a_link(make_library: MakeLibrary, bare: Path, tmp_path: Path) -> None:
    """The hub's cache is made of links."""
    (tmp_path / "blob").write_bytes(recording())
    (bare / "assets").mkdir()
    (bare / "assets" / "default_female.wav").symlink_to(tmp_path / "blob")
    assert use(make_library(bare), VoiceLibrary.default)


def test_a_file_is_read_once_for_many_listings(
    make_library: MakeLibrary, voice_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (voice_dir / "anna.wav").write_bytes(recording())
    read: list[Path] = []

    def counted(path: Path) -> VoiceRecording:
        read.append(path)
        return read_recording(path)

    monkeypatch.setattr(file_facts, "read_recording", counted)

    async def ask(library: VoiceLibrary) -> list[Voice]:
        return [await library.voices() for _ in range(3)][-1]

    assert "anna" in {voice.name for voice in use(make_library(voice_dir=voice_dir), ask)}
    assert read.count(voice_dir / "anna.wav") == 1


def test_a_file_that_is_written_to_is_read_again(make_library: MakeLibrary, voice_dir: Path) -> None:
    """In place, with as many bytes, and its time set back: the file system's own time of change is left."""
    path = voice_dir / "anna.wav"
    path.write_bytes(recording(100))
    before = path.stat()

    async def ask(library: VoiceLibrary) -> set[str]:
        ids = {voice.id for voice in await library.voices() if voice.name == "anna"}
        while path.stat().st_ctime_ns == before.st_ctime_ns:
            path.write_bytes(recording(200))
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        return ids | {voice.id for voice in await library.voices() if voice.name == "anna"}

    assert len(use(make_library(voice_dir=voice_dir), ask)) == 2


def test_of_files_that_come_at_once_by_one_name_one_stays(voice_dir: Path) -> None:
    forms = [recording(form="WAV"), recording(form="FLAC")]
    folder = VoiceFolder(voice_dir)
    for number in range(20):
        with ThreadPoolExecutor(4) as clients:
            kept = clients.map(lambda data: folder.keep(f"v{number}", data), 2 * forms)  # noqa: B023  done by then
        assert len(set(kept)) == 1
    assert len(list(voice_dir.iterdir())) == 20


def test_another_server_sees_what_was_added_and_deleted(make_library: MakeLibrary, voice_dir: Path) -> None:
    other = make_library(voice_dir=voice_dir)

    async def ask(library: VoiceLibrary) -> list[bool]:
        await library.add("anna", recording())
        await other.get("anna")
        there = ["anna" in {voice.name for voice in await other.voices()}]
        await other.delete("anna")
        there.append("anna" in {voice.name for voice in await library.voices()})
        await other.close()
        return there

    assert use(make_library(voice_dir=voice_dir), ask) == [True, False]
