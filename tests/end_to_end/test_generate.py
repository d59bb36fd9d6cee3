"""POST /generate on the real server: real vLLM, real token2wav, tiny weights."""

from __future__ import annotations

import io
import json
import socket
import struct
import time
import wave
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import httpx
import pytest

pytestmark = pytest.mark.vllm

HEADER_BYTES = 44
TEXT = "Hello, this is Step-Audio speaking!"
LONGEST_S = 10


def pcm_of(wav: bytes) -> bytes:
    """The samples of a whole wav, whose sizes must be true."""
    with wave.open(io.BytesIO(wav)) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (24000, 1, 2)
        pcm = bytes(file.readframes(file.getnframes()))
    assert len(wav) == HEADER_BYTES + len(pcm)
    return pcm


def streamed(client: httpx.Client, **body: Any) -> tuple[httpx.Response, list[bytes]]:
    with client.stream("POST", "/generate", json={"streaming": True, **body}) as response:
        return response, list(response.iter_raw())


def seconds_of(pcm: bytes) -> float:
    return len(pcm) / 2 / 24000


def test_a_whole_answer_says_how_long_it_is_and_what_it_said(client: httpx.Client) -> None:
    response = client.post("/generate", json={"text": TEXT})
    assert response.status_code == 200, response.text
    assert response.headers["Content-Type"] == "audio/wav"
    assert int(response.headers["Content-Length"]) == len(response.content)
    assert response.headers["X-Finish-Reason"] == "stop"
    assert response.headers["X-Request-Id"]
    assert ".wav" in response.headers["Content-Disposition"]
    assert unquote(response.headers["X-Transcript"]).strip()
    assert 0.5 < seconds_of(pcm_of(response.content)) <= LONGEST_S


@pytest.mark.parametrize("greedy", [True, False])
@pytest.mark.parametrize("text", ["A", "日本語 and 中文, mixed!", "one two three four five " * 100])
def test_any_text_ends_within_ten_seconds_of_sound(client: httpx.Client, text: str, greedy: bool) -> None:
    sampling = {"temperature": 0} if greedy else {"temperature": 1.0, "top_p": 1.0}
    response = client.post("/generate", json={"text": text, **sampling})
    assert response.status_code == 200, response.text
    assert response.headers["X-Finish-Reason"] == "stop"
    assert 0.2 < seconds_of(pcm_of(response.content)) <= LONGEST_S


def test_a_streamed_answer_begins_with_an_open_header_of_its_own(server: Any) -> None:
    with httpx.Client(base_url=server.url, timeout=180) as client:
        response, pieces = streamed(client, text=TEXT)
    assert response.status_code == 200
    assert "Content-Length" not in response.headers
    assert len(pieces[0]) == HEADER_BYTES
    assert struct.unpack("<I", pieces[0][4:8])[0] == 0xFFFFFFFF
    assert struct.unpack("<I", pieces[0][40:44])[0] == 0xFFFFFFFF
    assert len(pieces) > 2, "sound comes in pieces"


def test_streamed_and_whole_answers_carry_the_same_samples(client: httpx.Client) -> None:
    whole = client.post("/generate", json={"text": TEXT, "seed": 7})
    _, pieces = streamed(client, text=TEXT, seed=7)
    assert b"".join(pieces)[HEADER_BYTES:] == pcm_of(whole.content)


def test_a_seed_repeats_an_answer_and_another_one_changes_it(client: httpx.Client) -> None:
    first, again, other = (client.post("/generate", json={"text": TEXT, "seed": seed}) for seed in (11, 11, 12))
    assert first.headers["X-Seed"] == "11"
    assert first.content == again.content
    assert first.content != other.content


def test_the_seed_that_was_drawn_repeats_the_answer(client: httpx.Client) -> None:
    drawn = client.post("/generate", json={"text": TEXT})
    again = client.post("/generate", json={"text": TEXT, "seed": int(drawn.headers["X-Seed"])})
    assert again.content == drawn.content


def test_pcm_is_the_same_sound_without_a_header(client: httpx.Client) -> None:
    wav = client.post("/generate", json={"text": TEXT, "seed": 5})
    pcm = client.post("/generate", json={"text": TEXT, "seed": 5, "response_format": "pcm"})
    assert pcm.content == pcm_of(wav.content)


def test_a_recording_is_answered_from_a_form_and_from_a_path_alike(client: httpx.Client, recordings: Path) -> None:
    question = recordings / "question.wav"
    fields = {"text": "Please respond to my question.", "seed": 3}
    uploaded = client.post("/generate", files={"audio": question.open("rb")}, data=fields)
    named = client.post("/generate", json={**fields, "audio_path": str(question)})
    assert uploaded.status_code == named.status_code == 200, uploaded.text + named.text
    assert seconds_of(pcm_of(uploaded.content)) > 0.2
    assert uploaded.content == named.content


def test_a_recording_needs_no_text(client: httpx.Client, recordings: Path) -> None:
    response = client.post("/generate", files={"audio": (recordings / "input.wav").open("rb")})
    assert response.status_code == 200, response.text


@pytest.mark.parametrize("seconds", [1 / 16_000, 26, 290])
def test_a_recording_may_be_as_short_as_a_sample_and_as_long_as_minutes(client: httpx.Client, seconds: float) -> None:
    recording = io.BytesIO()
    with wave.open(recording, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(b"\x00\x10" * round(seconds * 16_000))
    response = client.post("/generate", files={"audio": recording.getvalue()})
    assert response.status_code == 200, response.text


def test_a_urlencoded_form_works_too(client: httpx.Client) -> None:
    response = client.post("/generate", data={"text": TEXT, "streaming": "yes"})
    assert response.status_code == 200, response.text
    assert "Content-Length" not in response.headers


def test_several_listeners_at_once_are_all_answered(server: Any) -> None:
    def listen(index: int) -> int:
        body = {"text": f"{TEXT} {index}", "streaming": index % 2 == 0}
        response = httpx.post(f"{server.url}/generate", json=body, timeout=180)
        assert response.status_code == 200, response.text
        return len(response.content)

    with ThreadPoolExecutor(4) as listeners:
        assert all(size > HEADER_BYTES + 4800 for size in listeners.map(listen, range(4)))


@pytest.mark.parametrize(
    ("body", "status", "code_or_param"),
    [
        ({"text": "  "}, 400, "text"),
        ({"text": "say <|EOT|> now"}, 400, "control_token"),
        ({"text": TEXT, "temperature": "hot"}, 400, "temperature"),
        ({"text": TEXT, "response_format": "midi"}, 400, "response_format"),
        ({"text": TEXT, "audio_path": "/no/such/file.wav"}, 404, "audio_path"),
    ],
)
def test_what_is_wrong_is_refused_with_a_reason(
    client: httpx.Client, body: dict[str, Any], status: int, code_or_param: str
) -> None:
    response = client.post("/generate", json=body)
    assert response.status_code == status
    error = response.json()["error"]
    assert error["message"]
    assert set(error) == {"message", "type", "param", "code"}
    assert code_or_param in (error["code"], error["param"])


class Counts:
    """Both processes' own counts of what is running, read over connections that are open already."""

    def __init__(self, engine: httpx.Client, sidecar: httpx.Client) -> None:
        self._engine, self._sidecar = engine, sidecar
        self.read()

    def read(self) -> tuple[int, int]:
        """In vLLM, and in the sidecar."""
        engine = count_of("vllm:num_requests_running", self._engine.get("http://vllm/metrics").text)
        return engine, count_of("sidecar_streams_running", self._sidecar.get("/metrics").text)

    def read_until(self, wanted: tuple[int, int], seconds: float) -> tuple[int, int]:
        deadline_s = time.monotonic() + seconds
        while (counts := self.read()) != wanted and time.monotonic() < deadline_s:
            time.sleep(0.05)
        return counts


def count_of(metric: str, text: str) -> int:
    lines = [line for line in text.splitlines() if line.startswith((f"{metric} ", f"{metric}{{"))]
    assert lines, f"{metric} is not among the metrics"
    return int(sum(float(line.split()[-1]) for line in lines))


@pytest.fixture
def counts(server: Any) -> Iterator[Counts]:
    with (
        httpx.Client(transport=httpx.HTTPTransport(uds=str(server.engine_socket)), timeout=30) as engine,
        httpx.Client(base_url=server.url, timeout=30) as sidecar,
    ):
        yield Counts(engine, sidecar)


@pytest.mark.parametrize("whole", [False, True])
def test_hanging_up_stops_the_language_model_and_frees_the_slot(server: Any, counts: Counts, whole: bool) -> None:
    assert counts.read_until((0, 0), 10) == (0, 0)
    body = json.dumps({"text": TEXT, "streaming": not whole}).encode()
    address = urlsplit(server.url)
    assert address.hostname is not None
    with socket.create_connection((address.hostname, address.port)) as connection:
        head = f"POST /generate HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        assert counts.read_until((1, 1), 2) == (1, 1)
    assert counts.read_until((0, 0), 1.0) == (0, 0)
