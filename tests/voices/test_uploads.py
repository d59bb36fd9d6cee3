"""Voices that clients add and delete."""

from __future__ import annotations

import asyncio
import io
import threading
import wave
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from voice_parts import CountingOpener, recording, sound_file, sweep, use

from sidecar.errors import (
    BadRequest,
    Conflict,
    NotFound,
    NotPermitted,
    RecordingTooLong,
    SidecarError,
    SynthesisFailed,
    TooLarge,
    UnknownVoice,
    UnsupportedMedia,
    UnusableAudio,
    VoiceUnavailable,
)
from sidecar.token2wav import Token2Wav
from sidecar.token2wav.state import OpenedVoice, VoiceFeatures
from sidecar.voices.library import VoiceLibrary
from sidecar.voices.voice import Voice

MakeLibrary = Callable[..., VoiceLibrary]


def in_folder(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


@pytest.mark.parametrize(("form", "suffix"), [("WAV", "wav"), ("FLAC", "flac"), ("OGG", "ogg"), ("MP3", "mp3")])
def test_an_added_voice_speaks_at_once_and_outlives_the_server(
    make_library: MakeLibrary, opener: CountingOpener, voice_dir: Path, form: str, suffix: str
) -> None:
    data = recording(seconds=2.0, form=form)

    async def add(library: VoiceLibrary) -> tuple[Voice, OpenedVoice]:
        return (await library.add("anna", data))[0], await library.get("anna")

    added, opened = use(make_library(voice_dir=voice_dir), add)
    assert opener.builds == 1
    assert (added.name, added.built_in) == ("anna", False) and added.seconds == pytest.approx(2.0, abs=0.1)
    assert in_folder(voice_dir) == [f"anna.{suffix}"]
    assert (voice_dir / f"anna.{suffix}").read_bytes() == data

    async def later(library: VoiceLibrary) -> tuple[list[Voice], OpenedVoice]:
        return await library.voices(), await library.get("anna")

    listed, again = use(make_library(voice_dir=voice_dir), later)
    assert added in listed
    assert torch.equal(again.flow.estimator.keys_values, opened.flow.estimator.keys_values)


def test_the_voice_folder_is_made_when_it_is_not_there(make_library: MakeLibrary, tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "voices"
    assert use(make_library(voice_dir=folder), VoiceLibrary.voices)
    assert not folder.exists()
    use(make_library(voice_dir=folder), lambda library: library.add("anna", recording()))
    assert in_folder(folder) == ["anna.wav"]


def test_without_a_voice_folder_added_voices_go_with_the_server(
    make_library: MakeLibrary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()

    async def add(library: VoiceLibrary) -> int:
        await library.add("anna", recording())
        assert "anna" in {voice.name for voice in await library.voices()}
        return len(list((tmp_path / "temporary").iterdir()))

    library = make_library()  # held on to: it must go by closing, not because nobody holds the library any more
    assert use(library, add) == 1
    assert list((tmp_path / "temporary").iterdir()) == []


def test_the_id_is_the_recordings_own(make_library: MakeLibrary) -> None:
    async def add(library: VoiceLibrary) -> list[str]:
        wanted = [("anna", 100.0), ("berta", 100.0), ("clara", 101.0)]
        return [(await library.add(name, recording(low_hz)))[0].id for name, low_hz in wanted]

    anna, berta, clara = use(make_library(), add)
    assert anna == berta != clara
    assert anna.startswith("voice_") and len(anna) == len("voice_") + 16


def test_the_same_recording_again_is_the_same_voice_and_another_one_is_refused(
    make_library: MakeLibrary, opener: CountingOpener, voice_dir: Path
) -> None:
    async def add(library: VoiceLibrary) -> None:
        voice, new = await library.add("anna", recording(100))
        assert new and await library.add("anna", recording(100)) == (voice, False)
        with pytest.raises(Conflict, match=r"'anna' is there already.*DELETE /v1/voices/anna") as refused:
            await library.add("anna", recording(200))
        assert refused.value.code == "voice_exists"

    use(make_library(voice_dir=voice_dir), add)
    assert opener.builds == 1
    assert (voice_dir / "anna.wav").read_bytes() == recording(100)


def test_of_two_recordings_that_race_for_a_name_one_wins(make_library: MakeLibrary, voice_dir: Path) -> None:
    """In different formats, so that not even their files' names collide."""

    async def race(library: VoiceLibrary) -> list[tuple[Voice, bool] | BaseException]:
        adding = library.add("anna", recording(100)), library.add("anna", recording(200, form="FLAC"))
        return await asyncio.gather(*adding, return_exceptions=True)

    results = use(make_library(voice_dir=voice_dir), race)
    assert sorted(type(result).__name__ for result in results) == ["Conflict", "tuple"]
    assert len(in_folder(voice_dir)) == 1


def test_one_recording_that_is_added_twice_at_once_is_one_voice(
    make_library: MakeLibrary, opener: CountingOpener, voice_dir: Path
) -> None:
    async def race(library: VoiceLibrary) -> list[Voice]:
        added = await asyncio.gather(*(library.add("anna", recording()) for _ in range(3)))
        return [voice for voice, _ in added]

    assert len(set(use(make_library(voice_dir=voice_dir), race))) == 1
    assert opener.builds == 1
    assert in_folder(voice_dir) == ["anna.wav"]


def hour_of_tone() -> bytes:
    """As 16 kHz wav, less its end: 1 h in the header and 60 s of bytes."""
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(16_000)
        writer.setnframes(3600 * 16_000)
        writer.writeframesraw((sweep(60.0) * 30_000).astype("<i2").tobytes())
    return file.getvalue()


UNUSABLE: dict[str, tuple[bytes, type[SidecarError], str]] = {
    "nothing": (b"", UnusableAudio, "is empty"),
    "text": (b"not a voice at all", UnsupportedMedia, "in no format"),
    "too short": (recording(seconds=0.9), UnusableAudio, r"lasts 0\.90 s; 1 to 30 s are taken"),
    "too long": (recording(seconds=30.1), RecordingTooLong, r"longer than the 30 s"),
    "very long": (hour_of_tone(), RecordingTooLong, r"longer than the 30 s"),
    "too large": (b"RIFF" + bytes(20_000_000), TooLarge, r"20 MB"),
    "silent": (sound_file(np.zeros(32_000, np.float32)), UnusableAudio, "is silent; send"),
    "silent on the left": (
        sound_file(np.stack([np.zeros(32_000, np.float32), sweep(2.0)])),
        UnusableAudio,
        "is silent in its first channel",
    ),
    "of too many samples": (
        sound_file(np.zeros((8, 1_500_000), np.float32), 192_000, "FLAC"),
        UnusableAudio,
        "fewer chan",
    ),
    "nothing but an offset": (sound_file(np.full(32_000, 0.5, np.float32)), UnusableAudio, "is silent"),
}


@pytest.mark.parametrize("which", UNUSABLE)
def test_a_recording_that_cannot_be_a_voice_is_refused_and_not_kept(
    make_library: MakeLibrary, opener: CountingOpener, voice_dir: Path, which: str
) -> None:
    data, error, why = UNUSABLE[which]
    with pytest.raises(error, match=why):
        use(make_library(voice_dir=voice_dir), lambda library: library.add("anna", data))
    assert opener.builds == 0
    assert in_folder(voice_dir) == []


def test_a_recording_that_the_model_cannot_continue_is_the_clients_to_change(
    make_library: MakeLibrary, opener: CountingOpener, voice_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overflow(features: VoiceFeatures) -> OpenedVoice:
        raise SynthesisFailed("the voice's recording gives numbers that are not finite; choose another recording")

    monkeypatch.setattr(opener, "open_voice", overflow)
    with pytest.raises(UnusableAudio, match="choose another recording"):
        use(make_library(voice_dir=voice_dir), lambda library: library.add("anna", recording()))
    assert in_folder(voice_dir) == []


@pytest.mark.parametrize("name", ["", "../anna", "/anna", "anna.wav", "a" * 65, "a" * 1000, "änna", "a\0", "a b", "."])
def test_nothing_can_be_added_or_deleted_by_a_name_that_is_none(
    make_library: MakeLibrary, voice_dir: Path, name: str
) -> None:
    (voice_dir.parent / "anna.wav").write_bytes(recording())
    (voice_dir / "änna.wav").write_bytes(recording())
    library = make_library(voice_dir=voice_dir)

    async def ask(_: VoiceLibrary) -> None:
        with pytest.raises(BadRequest, match="1 to 64 letters") as refused:
            await library.add(name, recording())
        assert len(refused.value.message) < 200
        with pytest.raises(NotFound, match="no voice is called"):
            await library.delete(name)

    use(library, ask)
    assert in_folder(voice_dir) == ["änna.wav"]
    assert (voice_dir.parent / "anna.wav").exists()


def test_the_longest_name_is_taken(make_library: MakeLibrary) -> None:
    assert use(make_library(), lambda library: library.add("a" * 64, recording()))[0].name == "a" * 64


@pytest.mark.parametrize("name", ["default", "default_female", "default_male"])
def test_a_built_in_voice_is_neither_replaced_nor_deleted(make_library: MakeLibrary, name: str) -> None:
    async def ask(library: VoiceLibrary) -> None:
        with pytest.raises(Conflict, match=f"{name!r} is there already, with another recording; choose another name$"):
            await library.add(name, recording())
        with pytest.raises(NotPermitted, match="cannot be deleted"):
            await library.delete(name)

    use(make_library(), ask)


def test_the_servers_default_voice_is_not_deleted_by_either_of_its_names(
    make_library: MakeLibrary, voice_dir: Path
) -> None:
    (voice_dir / "anna.wav").write_bytes(recording())

    async def ask(library: VoiceLibrary) -> None:
        for name in ("anna", "default"):
            with pytest.raises(NotPermitted, match="'anna' is the server's default voice"):
                await library.delete(name)

    use(make_library(voice="anna", voice_dir=voice_dir), ask)
    assert in_folder(voice_dir) == ["anna.wav"]


def test_a_deleted_voice_is_gone_with_its_features_and_every_file_of_its_name(
    make_library: MakeLibrary, voice_dir: Path, tmp_path: Path
) -> None:
    async def ask(library: VoiceLibrary) -> None:
        added, _ = await library.add("anna", recording())
        (voice_dir / "anna.flac").write_bytes(recording(200, form="FLAC"))
        (voice_dir / "anna.txt").write_text("notes")
        assert len(list((tmp_path / "cache" / "features").iterdir())) == 1
        (voice_dir / "anna.flac").unlink()
        assert await library.delete("anna") == added
        assert list((tmp_path / "cache" / "features").iterdir()) == []
        assert "anna" not in {voice.name for voice in await library.voices()}
        with pytest.raises(UnknownVoice):
            await library.get("anna")
        with pytest.raises(NotFound):
            await library.delete("anna")

    use(make_library(voice_dir=voice_dir), ask)
    assert in_folder(voice_dir) == ["anna.txt"]


def test_deleting_a_name_of_a_recording_leaves_its_other_name_ready(
    make_library: MakeLibrary, opener: CountingOpener
) -> None:
    async def ask(library: VoiceLibrary) -> None:
        for name in ("anna", "berta"):
            await library.add(name, recording())
        await library.delete("anna")
        await library.get("berta")

    use(make_library(), ask)
    assert opener.builds == 1


def test_a_stream_speaks_on_when_its_voice_is_deleted(make_library: MakeLibrary, token2wav: Token2Wav) -> None:
    tokens = torch.arange(1, 12)[None]

    async def ask(library: VoiceLibrary) -> torch.Tensor:
        await library.add("anna", recording())
        stream = token2wav.start(await library.get("anna"), seed=1)
        await library.delete("anna")
        return token2wav.step(tokens, [stream], last=True)[0]

    assert use(make_library(), ask).isfinite().all()


def test_a_voice_deleted_while_it_is_being_opened_is_gone_all_the_same(
    make_library: MakeLibrary, opener: CountingOpener, voice_dir: Path
) -> None:
    (voice_dir / "anna.wav").write_bytes(recording())
    opener.gate.clear()

    async def ask(library: VoiceLibrary) -> None:
        asked = asyncio.create_task(library.get("anna"))
        await asyncio.to_thread(opener.started.wait, 10)
        await library.delete("anna")
        opener.gate.set()
        assert isinstance(await asked, OpenedVoice)
        with pytest.raises(UnknownVoice):
            await library.get("anna")

    use(make_library(voice_dir=voice_dir), ask)


def test_an_upload_whose_client_goes_away_is_not_kept(
    make_library: MakeLibrary, opener: CountingOpener, voice_dir: Path
) -> None:
    opener.gate.clear()

    async def ask(library: VoiceLibrary) -> None:
        adding = asyncio.create_task(library.add("anna", recording()))
        await asyncio.to_thread(opener.started.wait, 10)
        adding.cancel()
        await asyncio.wait([adding])
        opener.gate.set()
        assert "anna" not in {voice.name for voice in await library.voices()}

    use(make_library(voice_dir=voice_dir), ask)
    assert in_folder(voice_dir) == []


def test_a_thousand_voices_are_enough(make_library: MakeLibrary, opener: CountingOpener, voice_dir: Path) -> None:
    for number in range(1000):
        (voice_dir / f"v{number}.wav").touch()

    async def ask(library: VoiceLibrary) -> None:
        with pytest.raises(Conflict, match=r"1,000 voices, and no more are taken") as refused:
            await library.add("anna", recording())
        assert refused.value.code == "too_many_voices" and opener.builds == 0
        (voice_dir / "v0.wav").unlink()
        await library.add("anna", recording())

    use(make_library(voice_dir=voice_dir), ask)


def test_the_last_room_may_be_taken_while_a_recording_is_being_opened(
    make_library: MakeLibrary, opener: CountingOpener, voice_dir: Path
) -> None:
    for number in range(999):
        (voice_dir / f"v{number}.wav").touch()
    opener.gate.clear()

    async def ask(library: VoiceLibrary) -> None:
        adding = asyncio.create_task(library.add("anna", recording()))
        await asyncio.to_thread(opener.started.wait, 10)
        (voice_dir / "last.wav").touch()
        opener.gate.set()
        with pytest.raises(Conflict, match="no more are taken"):
            await adding

    use(make_library(voice_dir=voice_dir), ask)


def test_a_folder_that_cannot_be_written_refuses_new_voices_and_harms_no_other(
    make_library: MakeLibrary, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()

    async def ask(library: VoiceLibrary) -> OpenedVoice:
        with pytest.raises(VoiceUnavailable, match=r"cannot be kept: Not a directory"):
            await library.add("anna", recording())
        return await library.get("default")

    assert isinstance(use(make_library(voice_dir=tmp_path / "file" / "voices"), ask), OpenedVoice)


def test_adding_holds_up_no_one_on_the_event_loop(make_library: MakeLibrary, opener: CountingOpener) -> None:
    opener.gate.clear()

    async def ask(library: VoiceLibrary) -> None:
        adding = asyncio.create_task(library.add("anna", recording()))
        await asyncio.to_thread(opener.started.wait, 10)
        assert len(await asyncio.wait_for(library.voices(), 5)) == 3
        opener.gate.set()
        await adding

    use(make_library(), ask)
    assert threading.get_ident() not in opener.threads
