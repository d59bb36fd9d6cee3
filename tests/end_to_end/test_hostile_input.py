"""Whatever comes in through our port, it is refused in words or answered, and the others hear what they always hear."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from hostile_recordings import ANSWERED, NO_SOUND, NOT_FINITE
from tiny_token2wav import assert_sounds_like

pytestmark = pytest.mark.vllm

MILLION_TOKENS = "a b" * 500_000
salts = iter(range(1_000_000))


def by_generate(client: httpx.Client, recording: bytes) -> httpx.Response:
    return client.post("/generate", files={"audio": ("a.wav", recording)})


def by_chat(client: httpx.Client, recording: bytes) -> httpx.Response:
    return client.post("/v1/chat/completions", json=chat(sound(base64.b64encode(recording).decode())))


def by_transcription(client: httpx.Client, recording: bytes) -> httpx.Response:
    files = {"file": ("a.wav", recording, "audio/wav")}
    return client.post("/v1/audio/transcriptions", files=files, data={"model": "tiny"})


Way = Callable[[httpx.Client, bytes], httpx.Response]
WAYS = {"generate": by_generate, "chat": by_chat, "transcription": by_transcription}


def chat(*content: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": [{"role": "user", "content": list(content)}], "max_tokens": 16, **fields}


def sound(data: str) -> dict[str, Any]:
    return {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}


def greedy_ids(client: httpx.Client) -> list[int]:
    """What a fixed question is answered, computed from its first token on, in memory that others have used before."""
    question = base64.b64encode(ANSWERED["clipped"]).decode()
    fixed = {"temperature": 0, "ignore_eos": True, "return_token_ids": True, "cache_salt": f"hostile {next(salts)}"}
    answer = client.post("/v1/chat/completions", json=chat(sound(question), **fixed))
    assert answer.status_code == 200, answer.text
    token_ids: list[int] = answer.json()["choices"][0]["token_ids"]
    assert len(token_ids) == 16
    return token_ids


@contextmanager
def speech(client: httpx.Client) -> Iterator[Callable[[], bytes]]:
    """A stream that has begun to speak; called, it gives its whole sound."""
    body = {"text": "Hello, this is Step-Audio speaking!", "streaming": True, "temperature": 0, "seed": 7}
    with client.stream("POST", "/generate", json=body) as response:
        assert response.status_code == 200
        pieces = response.iter_raw()
        begun = next(pieces) + next(pieces)
        yield lambda: begun + b"".join(pieces)


@pytest.fixture(scope="module")
def usual(server: Any) -> tuple[list[int], bytes]:
    with httpx.Client(base_url=server.url, timeout=180) as client:
        with speech(client) as sounds:
            return greedy_ids(client), sounds()


@contextmanager
def nobody_harmed(client: httpx.Client, usual: tuple[list[int], bytes]) -> Iterator[None]:
    """What is asked meanwhile changes neither a stream that is under way nor an answer that comes after."""
    ids, sounds = usual
    with speech(client) as stream:
        yield
        assert_sounds_like(stream(), sounds)
    assert greedy_ids(client) == ids


def refused(answer: httpx.Response, *statuses: int) -> str:
    assert answer.status_code in statuses, answer.text
    error = answer.json()["error"]
    assert error["type"] and error["message"]
    return str(error["message"])


@pytest.mark.parametrize("kind", NOT_FINITE)
def test_sound_that_is_not_finite_is_refused(kind: str, client: httpx.Client, usual: tuple[list[int], bytes]) -> None:
    with nobody_harmed(client, usual):
        answers = [way(client, NOT_FINITE[kind]) for way in WAYS.values()]
    for answer in answers:
        assert "finite" in refused(answer, 422)


@pytest.mark.parametrize("kind", NO_SOUND)
def test_bytes_without_sound_are_refused(kind: str, client: httpx.Client, usual: tuple[list[int], bytes]) -> None:
    with nobody_harmed(client, usual):
        answers = [way(client, NO_SOUND[kind]) for way in WAYS.values()]
    for answer in answers:
        refused(answer, 415, 422)


@pytest.mark.parametrize("data", ["%%%", "YWJ", "", base64.b64encode(ANSWERED["clipped"]).decode()[:-3]])
def test_sound_that_is_no_base64_is_refused(data: str, client: httpx.Client, usual: tuple[list[int], bytes]) -> None:
    with nobody_harmed(client, usual):
        answer = client.post("/v1/chat/completions", json=chat(sound(data)))
    refused(answer, 400, 422)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("kind", ANSWERED)
def test_odd_sound_is_answered(kind: str, way: Way, client: httpx.Client, usual: tuple[list[int], bytes]) -> None:
    with nobody_harmed(client, usual):
        answer = way(client, ANSWERED[kind])
    assert answer.status_code == 200, answer.text


def million_tokens() -> dict[str, tuple[str, dict[str, Any]]]:
    """Everywhere that text goes in; the texts of a chat have no limit but the context."""
    text = {"type": "text", "text": MILLION_TOKENS}
    said = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": MILLION_TOKENS}]
    return {
        "text": ("/generate", {"json": {"text": MILLION_TOKENS}}),
        "system prompt": ("/generate", {"json": {"text": "Hi", "system_prompt": MILLION_TOKENS}}),
        "chat": ("/v1/chat/completions", {"json": chat(text)}),
        "history": ("/v1/chat/completions", {"json": {**chat(), "messages": [*said, *chat()["messages"]]}}),
        "completion": ("/v1/completions", {"json": {"model": "tiny", "prompt": MILLION_TOKENS}}),
        "transcription": (
            "/v1/audio/transcriptions",
            {"files": {"file": ("a.wav", ANSWERED["clipped"])}, "data": {"model": "tiny", "prompt": MILLION_TOKENS}},
        ),
    }


@pytest.mark.parametrize("where", million_tokens())
def test_a_million_tokens_are_refused_with_the_limit(
    where: str, client: httpx.Client, usual: tuple[list[int], bytes]
) -> None:
    path, body = million_tokens()[where]
    with nobody_harmed(client, usual):
        answer = client.post(path, **body)
    assert any(digit.isdigit() for digit in refused(answer, 400, 413))
