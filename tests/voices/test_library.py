"""Where the default voice comes from, and that it is built once. The network is the edge that is scripted here."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import threading
from pathlib import Path

import httpx
import pytest

from sidecar.errors import BadRequest, SettingsError
from sidecar.token2wav import Token2Wav
from sidecar.token2wav.state import OpenedVoice, VoiceFeatures
from sidecar.token2wav.synthetic import write_token2wav
from sidecar.voices import default_recording
from sidecar.voices.default_recording import AUTHORS_URL, find_default_recording
from sidecar.voices.library import VoiceLibrary


class CountingOpener:
    """A real token2wav that counts how often it opened a voice, and in which thread."""

    def __init__(self, token2wav: Token2Wav) -> None:
        self._token2wav = token2wav
        self.threads: list[int] = []

    def open_voice(self, features: VoiceFeatures) -> OpenedVoice:
        self.threads.append(threading.get_ident())
        return self._token2wav.open_voice(features)


def no_network(url: str) -> bytes:
    raise httpx.ConnectError(f"no network here, asked for {url}")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    write_token2wav(folder, "tiny")
    return folder


@pytest.fixture
def opener(model: Path) -> CountingOpener:
    return CountingOpener(Token2Wav.from_folder(model / "token2wav"))


@pytest.fixture
def bare(model: Path, tmp_path: Path) -> Path:
    """A checkpoint that comes without a voice, as the real one does."""
    shutil.copytree(model, tmp_path / "bare", ignore=shutil.ignore_patterns("voices"))
    return tmp_path / "bare"


def test_callers_at_the_same_time_share_one_build_off_the_event_loop(model: Path, opener: CountingOpener) -> None:
    library = VoiceLibrary(opener, model, fetch=no_network)

    async def ask() -> list[OpenedVoice]:
        return [*await asyncio.gather(*(library.default() for _ in range(5))), await library.get("default")]

    voices = asyncio.run(ask())
    assert all(voice is voices[0] for voice in voices)
    assert len(opener.threads) == 1
    assert opener.threads[0] != threading.get_ident()


def test_a_caller_that_goes_away_does_not_stop_the_build(model: Path, opener: CountingOpener) -> None:
    library = VoiceLibrary(opener, model, fetch=no_network)

    async def ask() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(library.default(), timeout=0.0001)
        await library.default()

    asyncio.run(ask())
    assert len(opener.threads) == 1


def test_a_build_that_failed_is_tried_again(bare: Path, model: Path, opener: CountingOpener) -> None:
    library = VoiceLibrary(opener, bare, cache_dir=bare / "cache", fetch=no_network)

    async def ask() -> OpenedVoice:
        with pytest.raises(SettingsError):
            await library.default()
        shutil.copytree(model / "token2wav" / "voices", bare / "token2wav" / "voices")
        return await library.default()

    assert isinstance(asyncio.run(ask()), OpenedVoice)


def test_an_unknown_voice_is_a_bad_request_that_names_it(model: Path, opener: CountingOpener) -> None:
    with pytest.raises(BadRequest, match="no voice is called 'anna'") as refused:
        asyncio.run(VoiceLibrary(opener, model, fetch=no_network).get("anna"))
    assert refused.value.param == "voice"
    assert opener.threads == []


def test_an_unusable_recording_is_the_servers_fault_and_named(
    model: Path, tmp_path: Path, opener: CountingOpener
) -> None:
    text = tmp_path / "voice.wav"
    text.write_text("not a voice")
    with pytest.raises(SettingsError, match=r"voice\.wav cannot be used: the recording is in no format"):
        asyncio.run(VoiceLibrary(opener, model, voice=text, fetch=no_network).default())


def test_a_recording_that_cannot_be_read_is_named(model: Path, opener: CountingOpener) -> None:
    unreadable = Path("/proc/self/mem")
    with pytest.raises(SettingsError, match=r"/proc/self/mem cannot be used: .*Input/output error"):
        asyncio.run(VoiceLibrary(opener, model, voice=unreadable, fetch=no_network).default())


PLACES = [
    "model/token2wav/voices/default.wav",
    "model/token2wav/voices/default_female.wav",
    "model/assets/default_female.wav",
]


def find(folder: Path, *, voice: Path | None = None, fetch: default_recording.Fetch = no_network) -> Path:
    return find_default_recording(folder / "model", voice=voice, cache_dir=folder / "cache", fetch=fetch)


def test_the_recording_is_looked_for_in_order(tmp_path: Path) -> None:
    for place in reversed(PLACES):
        path = tmp_path / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"RIFF")
        assert find(tmp_path) == path


def test_a_named_recording_comes_before_all_others(tmp_path: Path) -> None:
    for place in [*PLACES, "mine.wav"]:
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_bytes(b"RIFF")
    assert find(tmp_path, voice=tmp_path / "mine.wav") == tmp_path / "mine.wav"


def test_a_named_recording_that_is_not_there_is_not_replaced_by_another(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"--voice .*gone\.wav: no such file"):
        find(tmp_path, voice=tmp_path / "gone.wav")


def test_without_a_recording_the_authors_is_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def fetch(url: str) -> bytes:
        asked.append(url)
        return b"the authors' voice"

    monkeypatch.setattr(default_recording, "AUTHORS_SHA256", hashlib.sha256(b"the authors' voice").hexdigest())
    first, second = find(tmp_path, fetch=fetch), find(tmp_path, fetch=fetch)
    assert asked == [AUTHORS_URL]
    assert first == second == tmp_path / "cache" / "default_female.wav"
    assert first.read_bytes() == b"the authors' voice"
    assert [path.name for path in first.parent.iterdir()] == ["default_female.wav"]


def test_a_fetched_file_with_another_sha256_is_thrown_away(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"sha256 differs.*pass --voice FILE"):
        find(tmp_path, fetch=lambda url: b"<html>")
    assert not (tmp_path / "cache" / "default_female.wav").exists()


def test_a_fetched_file_that_cannot_be_kept_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(default_recording, "AUTHORS_SHA256", hashlib.sha256(b"the authors' voice").hexdigest())
    (tmp_path / "cache" / "default_female.wav").mkdir(parents=True)
    with pytest.raises(SettingsError, match="pass --voice FILE"):
        find(tmp_path, fetch=lambda url: b"the authors' voice")
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["default_female.wav"]


def test_without_a_network_one_sentence_says_what_to_pass(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"fetching https://raw\.github.* failed .*pass --voice FILE"):
        find(tmp_path)
