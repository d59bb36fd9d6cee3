"""What is wrong is refused before the first byte, in words that say what to change."""

from __future__ import annotations

import io
import json
import os
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import soundfile
from speech_parts import ERROR_SEED, NAN_SEED, GatedEngine
from speech_server import SpeechServer, wait_until

from sidecar.errors import BadRequest, EngineFailed, NotReady
from sidecar.settings import LimitSettings, StreamSettings

HEADER_BYTES = 44


def error_of(answer: requests.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["X-Request-Id"]
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


@pytest.mark.parametrize(
    ("field", "value"),
    [("text", ""), ("text", 1), ("streaming", "yes"), ("top_p", 2), ("response_format", "ogg"), ("voice", "nobody")],
)
def test_a_wrong_field_is_a_400_that_names_it(server: SpeechServer, field: str, value: Any) -> None:
    error = error_of(server.generate(**{field: value}), 400)
    assert error["param"] == field
    assert error["type"] == "invalid_request_error"


def test_a_body_that_is_no_json_is_a_400(server: SpeechServer) -> None:
    headers = {"Content-Type": "application/json"}
    error_of(requests.post(f"{server.url}/generate", data=b"{", headers=headers, timeout=30), 400)


def test_a_form_without_its_boundary_is_a_400(server: SpeechServer) -> None:
    headers = {"Content-Type": "multipart/form-data"}
    error_of(requests.post(f"{server.url}/generate", data=b"--x", headers=headers, timeout=30), 400)


@pytest.mark.parametrize("body", [b"text=\xff", b"text=%FF", b"text=a&" + b"a=1&" * 2000])
def test_a_urlencoded_form_that_cannot_be_read_is_a_400(server: SpeechServer, body: bytes) -> None:
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    error = error_of(requests.post(f"{server.url}/generate", data=body, headers=headers, timeout=30), 400)
    assert "form cannot be read" in error["message"]


@pytest.mark.parametrize("media_type", ["text/plain", "application/xml", None])
def test_a_body_type_that_is_not_taken_is_a_415_that_names_those_that_are(
    server: SpeechServer, media_type: str | None
) -> None:
    headers = {} if media_type is None else {"Content-Type": media_type}
    error = error_of(requests.post(f"{server.url}/generate", data=b"Hello", headers=headers, timeout=30), 415)
    for taken in ("application/json", "multipart/form-data", "application/x-www-form-urlencoded"):
        assert taken in error["message"]


def test_a_compressed_body_is_a_415(server: SpeechServer) -> None:
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    error_of(requests.post(f"{server.url}/generate", data=b"\x1f\x8b", headers=headers, timeout=30), 415)


@pytest.mark.parametrize("name", ["<|EOT|>", "<audio_patch>", "<tts_start>", "<audio_17>", "<tool_call>"])
@pytest.mark.parametrize("field", ["text", "system_prompt"])
def test_the_name_of_a_control_token_is_refused_by_name(
    server: SpeechServer, engine: GatedEngine, field: str, name: str
) -> None:
    error = error_of(server.generate(**{field: f"Say {name} please"}), 400)
    assert (error["code"], error["param"]) == ("control_token", field)
    assert name in error["message"]
    assert engine.requests == []


def test_too_much_text_is_a_400_that_says_the_limit(server: SpeechServer) -> None:
    assert "4,096" in error_of(server.generate(text="a" * 4097), 400)["message"]
    assert "system_prompt" in error_of(server.generate(system_prompt="a" * 4097), 400)["message"]


def test_only_post_is_taken_and_only_known_routes(server: SpeechServer) -> None:
    error_of(requests.get(f"{server.url}/generate", timeout=30), 405)
    error_of(requests.post(f"{server.url}/v1/nothing", timeout=30), 404)


def test_what_the_engine_refuses_is_refused_before_the_first_byte(server: SpeechServer, engine: GatedEngine) -> None:
    for refusal, status in ((BadRequest("too long"), 400), (EngineFailed("gone"), 502), (NotReady("not yet"), 503)):
        engine.refusal = refusal
        for streaming in (False, True):
            answer = server.generate(streaming=streaming)
            assert error_of(answer, status)["message"] == refusal.message
            assert ("Retry-After" in answer.headers) == (status != 400)
    engine.refusal = None
    assert server.generate().ok, "a slot was lost"


def test_an_engine_that_fails_on_the_way_is_a_502_for_a_whole_answer(server: SpeechServer, engine: GatedEngine) -> None:
    engine.failure, engine.fail_after_tokens = EngineFailed("it went away"), 30
    answer = server.generate()
    assert error_of(answer, 502)["message"] == "it went away"
    assert "Retry-After" in answer.headers


def test_an_engine_that_fails_on_the_way_cuts_a_streamed_answer_short(
    server: SpeechServer, engine: GatedEngine, caplog: pytest.LogCaptureFixture
) -> None:
    engine.hold_at = 20
    engine.failure, engine.fail_after_tokens = EngineFailed("it went away"), 30
    with pytest.raises(requests.exceptions.ChunkedEncodingError), server.stream() as answer:
        pieces = answer.iter_content(1000)
        assert len(next(pieces) + next(pieces)) > HEADER_BYTES
        engine.hold_at = None
        for _ in pieces:
            pass
    request_id = answer.headers["X-Request-Id"]
    errors = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert any(request_id in line and "it went away" in line for line in errors)
    assert not any(record.exc_info for record in caplog.records)


@pytest.mark.parametrize("seed", [NAN_SEED, ERROR_SEED])
def test_a_stream_that_token2wav_cannot_speak_ends_alone(server: SpeechServer, engine: GatedEngine, seed: int) -> None:
    engine.hold_at = 20
    with server.stream(seed=1) as other:
        with pytest.raises(requests.exceptions.ChunkedEncodingError), server.stream(seed=seed) as broken:
            assert len(broken.raw.read(HEADER_BYTES)) == HEADER_BYTES
            engine.hold_at = None
            for _ in broken.iter_content(1000):
                pass
        assert len(other.content) == HEADER_BYTES + 2 * 40 * 960
    error = error_of(server.generate(seed=seed), 500)
    assert error["code"] == "synthesis_failed"


def test_a_fault_of_ours_is_a_500_whose_request_id_is_in_the_log(
    server: SpeechServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_: str) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(server.services.pipeline.voices, "get", broken)
    answer = server.generate()
    assert "a bug" not in error_of(answer, 500)["message"]
    errors = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert any(answer.headers["X-Request-Id"] in line for line in errors)
    assert server.streams_running == 0


def test_a_full_server_answers_503_before_any_audio(start_server: Any) -> None:
    with start_server(stream=StreamSettings(max_batch_size=2)) as server:
        server.engine.hold_at = 0
        with server.stream(), server.stream():
            answer = server.generate(streaming=True)
            assert error_of(answer, 503)["code"] == "full"
            assert int(answer.headers["Retry-After"]) >= 1
            assert server.streams_running == 2
            server.engine.hold_at = None
        wait_until(lambda: server.streams_running == 0, within_s=5)
        assert server.generate().ok


# recordings


def upload(server: SpeechServer, audio: bytes, **fields: str) -> requests.Response:
    return requests.post(f"{server.url}/generate", files={"audio": ("a.wav", audio)}, data=fields, timeout=30)


def test_a_recording_goes_to_the_engine_as_16_khz_wav_before_the_text(
    server: SpeechServer, engine: GatedEngine, recording: bytes
) -> None:
    assert upload(server, recording, text="Please respond to my question.").ok
    system, human, opened = engine.requests[-1].messages
    assert system == {"role": "system", "content": "You are a helpful assistant."}
    assert [part["type"] for part in human["content"]] == ["input_audio", "text"]
    assert human["content"][0]["input_audio"]["format"] == "wav"
    assert opened == {"role": "assistant", "content": "<tts_start>"}


def test_a_recording_needs_no_text(server: SpeechServer, engine: GatedEngine, recording: bytes) -> None:
    assert upload(server, recording).ok
    assert [part["type"] for part in engine.requests[-1].messages[1]["content"]] == ["input_audio"]


def test_a_path_is_read_like_an_upload(
    server: SpeechServer, engine: GatedEngine, recording: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "input.wav"
    path.write_bytes(recording)
    assert server.generate(audio_path=str(path)).ok
    by_path = engine.requests[-1].messages
    assert upload(server, recording, text="Hello").ok
    assert engine.requests[-1].messages == by_path


def test_what_is_no_recording_is_a_415(server: SpeechServer) -> None:
    error = error_of(upload(server, b"I am a text."), 415)
    assert (error["code"], error["param"]) == ("unsupported_media", "audio")
    assert error_of(server.generate(audio_path=__file__), 415)["param"] == "audio_path"


def test_a_recording_without_sound_is_a_422(server: SpeechServer, recording: bytes) -> None:
    assert error_of(upload(server, recording[:44]), 422)["param"] == "audio"


@pytest.mark.parametrize("sample_rate_hz", [1_000, 16_000, 384_000])
def test_a_recording_of_a_single_sample_is_answered(server: SpeechServer, sample_rate_hz: int) -> None:
    file = io.BytesIO()
    soundfile.write(file, np.full(1, 0.5, np.float32), sample_rate_hz, format="WAV")
    assert upload(server, file.getvalue()).ok


def test_a_recording_that_is_not_finite_never_reaches_the_engine(server: SpeechServer, engine: GatedEngine) -> None:
    samples = np.full(16_000, 0.1, np.float32)
    samples[8000] = np.nan
    file = io.BytesIO()
    soundfile.write(file, samples, 16_000, format="WAV", subtype="FLOAT")
    assert "finite" in error_of(upload(server, file.getvalue()), 422)["message"]
    assert engine.requests == []


def test_a_recording_that_is_too_long_is_a_400_that_says_the_limit(start_server: Any, recording: bytes) -> None:
    with start_server(limits=LimitSettings(max_recording_seconds=0.25)) as server:
        assert "0.25 s" in error_of(upload(server, recording), 400)["message"]


def test_two_recordings_are_a_400(server: SpeechServer, recording: bytes) -> None:
    error_of(upload(server, recording, audio_path="/a.wav"), 400)


def test_a_body_above_the_limit_is_a_413_announced_or_not(start_server: Any) -> None:
    with start_server(limits=LimitSettings(max_body_mb=1)) as server:
        url, large = f"{server.url}/generate", json.dumps({"text": "a" * 1_000_001}).encode()
        headers = {"Content-Type": "application/json"}
        assert "1,000,000" in error_of(requests.post(url, data=large, headers=headers, timeout=30), 413)["message"]
        pieces = (large[start : start + 10_000] for start in range(0, len(large), 10_000))
        error_of(requests.post(url, data=pieces, headers=headers, timeout=30), 413)
        error_of(upload(server, large), 413)
        error_of(requests.post(f"{server.url}/v1/chat/completions", data=large, headers=headers, timeout=30), 413)
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
            head = "POST /generate HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
            connection.sendall(f"{head}Expect: 100-continue\r\nContent-Length: 99999999\r\n\r\n".encode())
            assert connection.recv(100).startswith(b"HTTP/1.1 413"), "a client that asked first was told to go on"


# paths on the server


def test_on_loopback_any_file_may_be_named_and_what_is_none_is_a_404(server: SpeechServer, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    for path in (tmp_path / "nothing.wav", tmp_path, pipe, loop, Path("/dev/zero"), "nothing.wav", "a" * 5000):
        error = error_of(server.generate(audio_path=str(path)), 404)
        assert error["param"] == "audio_path"


@pytest.mark.parametrize("path", ["", "a\0b"])
def test_what_can_be_no_path_is_a_400(server: SpeechServer, path: str) -> None:
    assert error_of(server.generate(audio_path=path), 400)["param"] == "audio_path"


def test_elsewhere_no_file_may_be_named(start_server: Any, recording: bytes, tmp_path: Path) -> None:
    path = tmp_path / "input.wav"
    path.write_bytes(recording)
    with start_server(host="0.0.0.0") as server:
        assert error_of(server.generate(audio_path=str(path)), 403)["code"] == "path_not_permitted"


def test_only_allowed_folders_are_read_and_403_hides_what_is_outside(
    start_server: Any, recording: bytes, tmp_path: Path
) -> None:
    inside, other = tmp_path / "inside", tmp_path / "other"
    for folder in (inside, other, tmp_path / "inside too"):
        folder.mkdir()
    secret = tmp_path / "secret.wav"
    for path in (inside / "a.wav", other / "b.wav", secret, tmp_path / "inside too" / "c.wav"):
        path.write_bytes(recording)
    (inside / "way-out.wav").symlink_to(secret)
    (inside / "way-in.wav").symlink_to(inside / "a.wav")
    limits = replace(LimitSettings(), allowed_audio_path=(inside, other))
    with start_server(limits=limits) as server:
        for path in ("a.wav", "../inside/a.wav", "way-in.wav", inside / "a.wav", other / "b.wav"):
            assert server.generate(audio_path=str(path)).ok, path
        for path in ("nothing.wav", ".", inside / "nothing.wav"):
            error_of(server.generate(audio_path=str(path)), 404)
        outside = [
            "../secret.wav", "../nothing.wav", "way-out.wav", secret, tmp_path / "nothing.wav", "/etc/passwd",
            tmp_path / "inside too" / "c.wav",
        ]  # fmt: skip
        for path in outside:
            error_of(server.generate(audio_path=str(path)), 403)


def test_a_file_above_the_limit_is_a_413(start_server: Any, tmp_path: Path) -> None:
    large = tmp_path / "large.wav"
    large.write_bytes(b"RIFF" + bytes(1_000_000))
    with start_server(limits=LimitSettings(max_body_mb=1)) as server:
        error_of(server.generate(audio_path=str(large)), 413)
