"""Voices come, are listed and go by HTTP; what cannot be one is refused in words that say what can."""

from __future__ import annotations

import io
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import soundfile
from speech_parts import FaultyToken2Wav, GatedEngine
from speech_server import SpeechServer, speech_server, wait_until
from voice_fixtures import HeldOpener, add_voice, delete_voice, sung, voices_of

from sidecar.settings import Settings
from sidecar.voices.library import VoiceLibrary
from sidecar.voices.recording import MAX_BYTES

ANNA = sung(220)
FIELDS = {"id", "object", "name", "duration_seconds", "built_in", "default"}


def error_of(answer: requests.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def folder_of(server: SpeechServer) -> Path:
    assert server.services.settings.voice_dir is not None
    return server.services.settings.voice_dir


@pytest.fixture(scope="module")
def one_server(
    checkpoint: Path, token2wav: FaultyToken2Wav, reply: list[int], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SpeechServer]:
    folder = tmp_path_factory.mktemp("voices")
    library = VoiceLibrary(token2wav, checkpoint, voice_dir=folder, cache_dir=tmp_path_factory.mktemp("cache"))
    settings = Settings(model=checkpoint, voice_dir=folder)
    with speech_server(settings, GatedEngine(reply), token2wav=token2wav, voices=library) as server:
        yield server


@pytest.fixture
def server(one_server: SpeechServer) -> Iterator[SpeechServer]:
    """With the checkpoint's own voices alone."""
    yield one_server
    for name in [name for name, one in voices_of(one_server).items() if not one["built_in"]]:
        assert delete_voice(one_server, name).ok


def test_the_list_has_the_checkpoints_voice_and_the_authors(server: SpeechServer) -> None:
    answer = requests.get(f"{server.url}/v1/voices", timeout=30)
    assert answer.ok and answer.json()["object"] == "list"
    listed = answer.json()["data"]
    assert [one["name"] for one in listed] == ["default", "default_female", "default_male"]
    assert all(set(one) == FIELDS and one["object"] == "voice" and one["built_in"] for one in listed)
    assert [one["default"] for one in listed] == [True, False, False]
    assert len({one["id"] for one in listed}) == 3
    assert all(1 <= one["duration_seconds"] <= 30 for one in listed)


def test_a_voice_is_added_listed_and_deleted(server: SpeechServer) -> None:
    added = add_voice(server, "Anna-2_b", ANNA)
    assert added.status_code == 201, added.text
    voice = added.json()
    assert voice == {
        "id": voice["id"], "object": "voice", "name": "Anna-2_b", "duration_seconds": 2.0, "built_in": False,
        "default": False,
    }  # fmt: skip
    assert voices_of(server)["Anna-2_b"] == voice
    deleted = delete_voice(server, "Anna-2_b")
    assert deleted.json() == {"id": voice["id"], "object": "voice.deleted", "name": "Anna-2_b", "deleted": True}
    assert "Anna-2_b" not in voices_of(server)
    assert "Anna-2_b" in error_of(delete_voice(server, "Anna-2_b"), 404)["message"]


def test_the_same_recording_again_changes_nothing_and_another_is_a_409(server: SpeechServer) -> None:
    first = add_voice(server, "anna", ANNA)
    again = add_voice(server, "anna", ANNA)
    assert (again.status_code, again.json()) == (200, first.json())
    assert error_of(add_voice(server, "anna", sung(330)), 409)["param"] == "name"
    assert voices_of(server)["anna"] == first.json()


def test_the_id_goes_with_the_recording(server: SpeechServer) -> None:
    ids = [add_voice(server, name, data).json()["id"] for name, data in (("a", ANNA), ("b", ANNA), ("c", sung(330)))]
    assert ids[0] == ids[1] != ids[2]


@pytest.mark.parametrize("container", ["FLAC", "OGG", "MP3"])
def test_a_recording_may_be_compressed(server: SpeechServer, container: str) -> None:
    samples, rate_hz = soundfile.read(io.BytesIO(ANNA))
    file = io.BytesIO()
    soundfile.write(file, samples, rate_hz, format=container)
    added = add_voice(server, "anna", file.getvalue())
    assert added.status_code == 201, added.text
    assert added.json()["duration_seconds"] == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize("name", ["default", "default_female", "default_male"])
def test_built_in_voices_stay(server: SpeechServer, name: str) -> None:
    assert error_of(delete_voice(server, name), 403)["type"] == "permission_error"
    assert error_of(add_voice(server, name, ANNA), 409)["param"] == "name"
    assert voices_of(server)[name]["built_in"]


def test_a_file_that_is_put_into_the_folder_is_a_voice_at_once(server: SpeechServer) -> None:
    (folder_of(server) / "bert.wav").write_bytes(ANNA)
    (folder_of(server) / "not a name.wav").write_bytes(ANNA)
    (folder_of(server) / "notes.txt").write_bytes(b"Bert sings in A.")
    assert set(voices_of(server)) == {"default", "default_female", "default_male", "bert"}
    assert add_voice(server, "anna", ANNA).json()["id"] == voices_of(server)["bert"]["id"]
    assert delete_voice(server, "bert").ok
    assert not (folder_of(server) / "bert.wav").exists()
    assert (folder_of(server) / "notes.txt").exists()


# what is refused


@pytest.mark.parametrize("name", ["../anna", "/tmp/anna", "a/b", "anna.wav", "..", "", " ", "änna", "a" * 65, "a\0b"])
def test_a_name_that_is_none_is_a_400_and_touches_no_file(server: SpeechServer, name: str) -> None:
    above = sorted(folder_of(server).parent.iterdir())
    error = error_of(add_voice(server, name, ANNA), 400)
    assert error["param"] == "name"
    assert "letters" in error["message"] and "digits" in error["message"]
    assert sorted(folder_of(server).parent.iterdir()) == above


@pytest.mark.parametrize("name", ["..%2Fsecret", "%2e%2e%2Fsecret", "secret.wav", "%00", "a" * 5000, "%F0%9F%8E%A4"])
def test_no_path_is_deleted(server: SpeechServer, name: str) -> None:
    secret = folder_of(server).parent / "secret.wav"
    secret.write_bytes(ANNA)
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:  # requests tidies paths up
        connection.sendall(f"DELETE /v1/voices/{name} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 404")
    assert secret.exists()


def wav(samples: Any, rate_hz: int = 24_000, subtype: str = "PCM_16") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate_hz, format="WAV", subtype=subtype)
    return file.getvalue()


def noise(seconds: float) -> Any:
    return np.random.default_rng(0).normal(0, 0.1, int(24_000 * seconds)).astype(np.float32)


@pytest.mark.parametrize(
    ("recording", "status", "words"),
    [
        (b"", 422, "empty"),
        (b"I am a text.", 415, "wav, flac"),
        (ANNA[:44], 422, "sound"),
        (wav(noise(0.9)), 422, "1 to 30 s"),
        (wav(noise(30.5)), 400, "30 s"),
        (wav(np.full(48_000, np.nan, np.float32), subtype="FLOAT"), 422, "finite"),
        (b"RIFF" + bytes(MAX_BYTES), 413, "20 MB"),
        (b"RIFF" + bytes(MAX_BYTES + 2_000_000), 413, "bytes"),
    ],
    ids=["nothing", "text", "no sound", "too short", "too long", "not finite", "too large", "far too large"],
)
def test_what_cannot_be_a_voice_says_why_and_leaves_nothing(
    server: SpeechServer, recording: bytes, status: int, words: str
) -> None:
    before = sorted(folder_of(server).iterdir())
    error = error_of(add_voice(server, "anna", recording), status)
    assert words in error["message"]
    assert error["param"] == ("file" if len(recording) < MAX_BYTES + 1_000_000 else None)
    assert "anna" not in voices_of(server)
    assert sorted(folder_of(server).iterdir()) == before


def test_a_form_that_is_not_as_it_must_be_is_a_400_that_names_the_field(server: SpeechServer) -> None:
    for form, files, param in (
        ({}, {"file": ("a.wav", ANNA)}, "name"),
        ({"name": "anna"}, {}, "file"),
        ({"name": ["anna", "bert"]}, {"file": ("a.wav", ANNA)}, "name"),
        ({"name": "anna"}, [("file", ("a.wav", ANNA)), ("file", ("b.wav", ANNA))], "file"),
        ({}, {"file": ("a.wav", ANNA), "name": ("name.txt", b"anna")}, "name"),
        ({"name": "anna"}, {"file": (None, "a.wav")}, "file"),
    ):
        form_and_more = {"files": files or {"other": ("a.wav", ANNA)}, "data": form}
        answer = requests.post(f"{server.url}/v1/voices", timeout=30, **form_and_more)  # type: ignore[arg-type]
        assert error_of(answer, 400)["param"] == param


def test_fields_that_nobody_knows_are_ignored(server: SpeechServer) -> None:
    assert add_voice(server, "anna", ANNA, consent="yes", model="tiny").status_code == 201


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content-Type": "application/json"}, 415),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ({}, 415),
        ({"Content-Type": "multipart/form-data"}, 400),
        ({"Content-Type": "multipart/form-data; boundary=x"}, 400),
    ],
)
def test_another_body_is_refused(server: SpeechServer, headers: dict[str, str], status: int) -> None:
    error_of(requests.post(f"{server.url}/v1/voices", data=b'{"name": "anna"}', headers=headers, timeout=30), status)


def test_other_methods_are_a_405(server: SpeechServer) -> None:
    error_of(requests.put(f"{server.url}/v1/voices", timeout=30), 405)
    error_of(requests.get(f"{server.url}/v1/voices/default", timeout=30), 405)


def test_a_client_that_hangs_up_in_its_upload_leaves_nothing(
    server: SpeechServer, caplog: pytest.LogCaptureFixture
) -> None:
    head = b"POST /v1/voices HTTP/1.1\r\nHost: a\r\nContent-Type: multipart/form-data; boundary=x\r\n"
    part = b'--x\r\nContent-Disposition: form-data; name="name"\r\n\r\nanna\r\n--x\r\n'
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(head + b"Content-Length: 9999\r\n\r\n" + part)
    assert set(voices_of(server)) == {"default", "default_female", "default_male"}
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


# the server's life


def test_until_the_default_voice_is_open_voices_are_a_503(
    checkpoint: Path, token2wav: FaultyToken2Wav, reply: list[int], tmp_path: Path
) -> None:
    opener = HeldOpener(token2wav)
    opener.go.clear()
    library = VoiceLibrary(opener, checkpoint, cache_dir=tmp_path)
    settings = Settings(model=checkpoint)
    with speech_server(settings, GatedEngine(reply), until_ready=False, token2wav=token2wav, voices=library) as server:
        assert opener.building.wait(30)
        for answer in (
            requests.get(f"{server.url}/v1/voices", timeout=30),
            add_voice(server, "anna", ANNA),
            delete_voice(server, "anna"),
        ):
            assert "default voice" in error_of(answer, 503)["message"]
            assert int(answer.headers["Retry-After"]) > 0
        opener.go.set()
        wait_until(lambda: requests.get(f"{server.url}/v1/voices", timeout=5).ok, within_s=30)


@pytest.mark.parametrize("kept", [True, False])
def test_voices_outlive_the_server_in_a_folder_of_their_own_alone(
    checkpoint: Path,
    token2wav: FaultyToken2Wav,
    reply: list[int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kept: bool,
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    settings = Settings(model=checkpoint, voice_dir=tmp_path / "new" / "voices" if kept else None)
    with speech_server(settings, GatedEngine(reply), token2wav=token2wav) as server:
        assert add_voice(server, "anna", ANNA).status_code == 201
        heard = server.generate(voice="anna", seed=1)
        assert heard.ok
    if not kept:
        assert list(tmp_path.iterdir()) == []
    with speech_server(settings, GatedEngine(reply), token2wav=token2wav) as server:
        assert ("anna" in voices_of(server)) == kept
        again = server.generate(voice="anna", seed=1)
        assert again.content == heard.content if kept else again.status_code == 400


@pytest.mark.parametrize(("voice", "name"), [("anna", "anna"), ("recording", "default")])
def test_the_default_voice_may_be_a_name_or_a_recording(
    checkpoint: Path,
    token2wav: FaultyToken2Wav,
    reply: list[int],
    tmp_path: Path,
    voice: str,
    name: str,
) -> None:
    (tmp_path / "anna.wav").write_bytes(ANNA)
    chosen = voice if voice == "anna" else str(tmp_path / "anna.wav")
    settings = Settings(model=checkpoint, voice=chosen, voice_dir=tmp_path)
    with speech_server(settings, GatedEngine(reply), token2wav=token2wav) as server:
        assert [one["name"] for one in voices_of(server).values() if one["default"]] == [name]
        by_default, by_name = server.generate(seed=1), server.generate(seed=1, voice="anna")
        assert by_default.ok and by_default.content == by_name.content
        assert delete_voice(server, name).status_code == 403, "the server could not speak without it"
