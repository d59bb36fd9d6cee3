"""Name -> opened voice: where a recording is looked for, and that it is built once, whoever asks."""

from __future__ import annotations

import asyncio
import gc
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from voice_parts import CountingOpener, recording, use

from sidecar.errors import BadRequest, NotReady, SettingsError, SynthesisFailed, UnknownVoice, VoiceUnavailable
from sidecar.token2wav.state import OpenedVoice, VoiceFeatures
from sidecar.voices.library import VoiceLibrary

MakeLibrary = Callable[..., VoiceLibrary]


def test_callers_at_the_same_time_share_one_build_off_the_event_loop(
    make_library: MakeLibrary, opener: CountingOpener, voice_dir: Path
) -> None:
    (voice_dir / "anna.wav").write_bytes(recording())

    async def ask(library: VoiceLibrary) -> list[OpenedVoice]:
        return await asyncio.gather(*(library.get("anna") for _ in range(5)))

    voices = use(make_library(voice_dir=voice_dir), ask)
    assert all(voice is voices[0] for voice in voices)
    assert opener.builds == 1
    assert opener.threads[0] != threading.get_ident()


def test_two_names_of_one_recording_share_one_build(
    make_library: MakeLibrary, opener: CountingOpener, voice_dir: Path
) -> None:
    for name in ("anna", "berta"):
        (voice_dir / f"{name}.wav").write_bytes(recording())

    async def ask(library: VoiceLibrary) -> tuple[OpenedVoice, OpenedVoice]:
        return await asyncio.gather(library.get("anna"), library.get("berta"))

    anna, berta = use(make_library(voice_dir=voice_dir), ask)
    assert anna is berta and opener.builds == 1


def test_different_voices_are_built_one_after_the_other(
    make_library: MakeLibrary, opener: CountingOpener, voice_dir: Path
) -> None:
    for number in range(4):
        (voice_dir / f"v{number}.wav").write_bytes(recording(100 + number))

    async def ask(library: VoiceLibrary) -> None:
        await asyncio.gather(*(library.get(f"v{number}") for number in range(4)))

    use(make_library(voice_dir=voice_dir), ask)
    assert opener.builds == 4 and opener.most_at_once == 1


def test_a_caller_that_goes_away_does_not_stop_the_build(
    make_library: MakeLibrary, opener: CountingOpener, voice_dir: Path
) -> None:
    (voice_dir / "anna.wav").write_bytes(recording())
    opener.gate.clear()

    async def ask(library: VoiceLibrary) -> None:
        leaving, staying = asyncio.create_task(library.get("anna")), asyncio.create_task(library.get("anna"))
        await asyncio.to_thread(opener.started.wait, 10)
        leaving.cancel()
        await asyncio.wait([leaving])
        opener.gate.set()
        assert await staying is await library.get("anna")

    use(make_library(voice_dir=voice_dir), ask)
    assert opener.builds == 1


def test_a_build_that_fails_when_all_have_gone_is_no_error(
    make_library: MakeLibrary,
    opener: CountingOpener,
    voice_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (voice_dir / "anna.wav").write_bytes(recording())
    failed = threading.Event()

    def fail(features: VoiceFeatures) -> OpenedVoice:
        opener.started.set()
        assert opener.gate.wait(30)
        failed.set()
        raise SynthesisFailed("the voice cannot be continued")

    monkeypatch.setattr(opener, "open_voice", fail)
    opener.gate.clear()

    async def ask(library: VoiceLibrary) -> None:
        asked = asyncio.create_task(library.get("anna"))
        await asyncio.to_thread(opener.started.wait, 10)
        asked.cancel()
        await asyncio.wait([asked])
        opener.gate.set()
        await asyncio.to_thread(failed.wait, 10)
        await asyncio.sleep(0.2)  # until the loop has heard of it
        gc.collect()

    use(make_library(voice_dir=voice_dir), ask)
    assert "never retrieved" not in caplog.text


def test_a_build_that_failed_is_tried_again(bare: Path, make_library: MakeLibrary, model: Path) -> None:
    tokenizer = bare / "token2wav" / "speech_tokenizer_v2_25hz.onnx"
    whole = tokenizer.read_bytes()
    tokenizer.write_bytes(whole[:100])
    (bare / "assets").mkdir()
    (bare / "assets" / "anna.wav").write_bytes(recording())

    async def ask(library: VoiceLibrary) -> OpenedVoice:
        with pytest.raises(Exception, match="no ONNX network"):
            await library.get("anna")
        tokenizer.write_bytes(whole)
        return await library.get("anna")

    assert isinstance(use(make_library(bare), ask), OpenedVoice)


def test_closing_leaves_nobody_waiting(make_library: MakeLibrary, opener: CountingOpener, voice_dir: Path) -> None:
    for number in range(3):
        (voice_dir / f"v{number}.wav").write_bytes(recording(100 + number))
    opener.gate.clear()

    async def ask(library: VoiceLibrary) -> list[OpenedVoice | BaseException]:
        waiting = [asyncio.create_task(library.get(f"v{number}")) for number in range(3)]
        await asyncio.to_thread(opener.started.wait, 10)
        await asyncio.sleep(0.2)
        await library.close()
        return await asyncio.gather(*waiting, library.get("v0"), return_exceptions=True)

    told = use(make_library(voice_dir=voice_dir), ask)
    opener.gate.set()
    time.sleep(0.3)  # in which a build that still waited would begin
    assert [type(error) for error in told] == [NotReady] * 4
    assert opener.builds == 1


HOSTILE = ["anna", "", "../anna", "a/b", "..", "a" * 1000, "anna.wav", "änna", "a\0b", "a\nb", " anna", "-rf /", "ＡＢ"]


@pytest.mark.parametrize("name", HOSTILE)
def test_an_unknown_voice_is_a_bad_request_that_names_those_there_are(
    make_library: MakeLibrary, opener: CountingOpener, voice_dir: Path, name: str
) -> None:
    (voice_dir.parent / "anna.wav").write_bytes(recording())
    (voice_dir / "berta.wav").write_bytes(recording())
    with pytest.raises(UnknownVoice, match=r"here are berta, default, default_female, default_male, and POST") as error:
        use(make_library(voice_dir=voice_dir), lambda library: library.get(name))
    assert isinstance(error.value, BadRequest) and (error.value.param, error.value.code) == ("voice", "unknown_voice")
    assert len(error.value.message) < 250
    assert opener.builds == 0


def test_with_very_many_voices_an_error_names_some(make_library: MakeLibrary, voice_dir: Path) -> None:
    for number in range(50):
        (voice_dir / f"v{number}.wav").touch()
    with pytest.raises(UnknownVoice, match=r" and 33 more, and POST"):
        use(make_library(voice_dir=voice_dir), lambda library: library.get("anna"))


PLACES = ["bare/token2wav/voices/anna.wav", "bare/assets/anna.wav", "voices/anna.wav"]


def test_a_name_is_looked_for_in_the_checkpoint_then_in_the_folder(
    make_library: MakeLibrary, bare: Path, voice_dir: Path, tmp_path: Path
) -> None:
    found = []
    for number, place in enumerate(reversed(PLACES)):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_bytes(recording(100 + number))
        library = make_library(bare, voice_dir=voice_dir)
        found.append({voice.name: voice for voice in use(library, VoiceLibrary.voices)}["anna"])
    assert len({voice.id for voice in found}) == 3
    assert [voice.built_in for voice in found] == [False, True, True]


def test_the_default_voice_is_the_checkpoints_own_else_the_authors(make_library: MakeLibrary, bare: Path) -> None:
    assert make_library().default_name == "default"
    assert make_library(bare).default_name == "default_female"


def test_the_authors_default_voice_may_lie_in_the_voice_folder(
    make_library: MakeLibrary, bare: Path, voice_dir: Path
) -> None:
    (voice_dir / "default_female.wav").write_bytes(recording())

    async def ask(library: VoiceLibrary) -> bool:
        return await library.default() is await library.get("default_female") is await library.get("default")

    assert use(make_library(bare, voice_dir=voice_dir), ask)


def test_a_word_that_could_be_a_name_is_one_and_anything_else_a_path(
    make_library: MakeLibrary, voice_dir: Path, tmp_path: Path
) -> None:
    (voice_dir / "anna.wav").write_bytes(recording())
    named, path = make_library(voice="anna", voice_dir=voice_dir), make_library(voice=str(voice_dir / "anna.wav"))
    assert (named.default_name, path.default_name) == ("anna", "default")

    async def ask(library: VoiceLibrary) -> tuple[list[str], bool]:
        listed = [voice.name for voice in await library.voices()]
        return listed, await library.default() is await library.get("default") is await library.get(listed[0])

    assert use(named, ask) == (["anna", "default_female", "default_male"], True)
    assert use(path, ask) == (["default", "default_female", "default_male"], True)


def test_a_recording_given_as_the_default_voice_is_listed_as_built_in(
    make_library: MakeLibrary, tmp_path: Path
) -> None:
    (tmp_path / "mine.flac").write_bytes(recording(seconds=1.5, form="FLAC"))
    listed = use(make_library(voice=str(tmp_path / "mine.flac")), VoiceLibrary.voices)
    assert [(voice.name, voice.seconds, voice.built_in) for voice in listed[:1]] == [("default", 1.5, True)]


def test_the_default_voice_stays_what_it_was_when_its_file_goes(
    make_library: MakeLibrary, opener: CountingOpener, voice_dir: Path
) -> None:
    (voice_dir / "anna.wav").write_bytes(recording())

    async def ask(library: VoiceLibrary) -> bool:
        before = await library.default()
        (voice_dir / "anna.wav").unlink()
        return await library.default() is await library.get("anna") is before

    assert use(make_library(voice="anna", voice_dir=voice_dir), ask)
    assert opener.builds == 1


def test_a_file_that_is_replaced_speaks_with_its_new_recording(
    make_library: MakeLibrary, opener: CountingOpener, voice_dir: Path
) -> None:
    """Of the same size, within the same moment, and with its time set back: the bytes decide."""
    path = voice_dir / "anna.wav"
    path.write_bytes(recording(100))
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns

    async def ask(library: VoiceLibrary) -> tuple[OpenedVoice, OpenedVoice, OpenedVoice]:
        first, again = await library.get("anna"), await library.get("anna")
        path.write_bytes(recording(200))
        os.utime(path, ns=times)
        return first, again, await library.get("anna")

    first, again, replaced = use(make_library(voice_dir=voice_dir), ask)
    assert first is again and opener.builds == 2
    assert not torch.equal(first.flow.speaker, replaced.flow.speaker)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("anna", r"no voice is called 'anna'; here are .*a recording's path is \./anna"),
        ("default_male", "put https://"),
    ],
)
def test_a_default_voice_that_cannot_be_had_says_what_to_pass(make_library: MakeLibrary, name: str, why: str) -> None:
    with pytest.raises(SettingsError, match=f"--voice {name} cannot speak: .*{why}"):
        use(make_library(voice=name), VoiceLibrary.default)


def test_a_default_recording_that_cannot_be_used_is_named(make_library: MakeLibrary, tmp_path: Path) -> None:
    text = tmp_path / "voice.wav"
    text.write_text("not a voice")
    with pytest.raises(SettingsError, match=r"--voice .*voice\.wav cannot speak: .* is in no format"):
        use(make_library(voice=str(text)), VoiceLibrary.default)


@pytest.mark.parametrize(
    ("path", "why"), [("/proc/self/mem", "Input/output error"), ("/dev/zero", "is no file"), ("/gone.wav", "No such")]
)
def test_a_default_recording_that_cannot_be_read_is_named(make_library: MakeLibrary, path: str, why: str) -> None:
    with pytest.raises(SettingsError, match=f"--voice {path} cannot speak: .*{why}"):
        use(make_library(voice=path), VoiceLibrary.default)


def test_a_voice_that_cannot_be_fetched_harms_no_other(make_library: MakeLibrary) -> None:
    async def ask(library: VoiceLibrary) -> OpenedVoice:
        with pytest.raises(VoiceUnavailable, match=r"without the voice 'default_male', and fetching it failed"):
            await library.get("default_male")
        return await library.get("default")

    assert isinstance(use(make_library(), ask), OpenedVoice)


def test_a_voice_that_could_not_be_fetched_speaks_once_it_lies_in_the_folder(
    make_library: MakeLibrary, voice_dir: Path, model: Path
) -> None:
    async def ask(library: VoiceLibrary) -> OpenedVoice:
        with pytest.raises(VoiceUnavailable):
            await library.get("default_male")
        shutil.copy(model / "token2wav" / "voices" / "default.wav", voice_dir / "default_male.wav")
        return await library.get("default_male")

    assert isinstance(use(make_library(voice_dir=voice_dir), ask), OpenedVoice)
