"""Plain vLLM with the plugin, asked for what cannot be: a refusal for the one who asks, nothing for anybody else."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from golden_chats import about, answer, recorded_ids, recorded_request
from hostile_recordings import ANSWERED, NO_SOUND, NOT_FINITE
from vllm_server import VllmServer

pytestmark = pytest.mark.vllm

STREAMED_TOKENS = 200
MILLION_TOKENS = "a b" * 500_000
salts = iter(range(1_000_000))


def asked_anew(name: str) -> dict[str, Any]:
    """Computed from its first token on, in memory that others have used before."""
    return recorded_request(name, cache_salt=f"hostile {next(salts)}")


def streamed_ids(events: Iterator[str]) -> list[int]:
    chunks = (json.loads(line.removeprefix("data: ")) for line in events if line.startswith("data: {"))
    return [token for chunk in chunks for choice in chunk["choices"] for token in choice.get("token_ids") or []]


@contextmanager
def stream(server: VllmServer) -> Iterator[Callable[[], list[int]]]:
    """A long greedy answer that has begun; called, it gives its ids."""
    body = {"model": server.model, **asked_anew("speech_to_text"), "max_tokens": STREAMED_TOKENS, "stream": True}
    with httpx.stream("POST", f"{server.base_url}/v1/chat/completions", json=body, timeout=120) as reply:
        lines = reply.iter_lines()
        assert next(lines).startswith("data: {")
        yield lambda: streamed_ids(lines)


@pytest.fixture(scope="module")
def long_answer(golden_server: VllmServer) -> list[int]:
    with stream(golden_server) as ids:
        alone = ids()
    assert alone[:32] == recorded_ids("speech_to_text") and len(alone) == STREAMED_TOKENS
    return alone


@contextmanager
def nobody_harmed(server: VllmServer, long_answer: list[int]) -> Iterator[None]:
    """What is asked meanwhile changes neither an answer that is under way nor one that comes after."""
    with stream(server) as ids:
        yield
        assert ids() == long_answer
    for name in ("speech_to_text", "text_chat"):
        assert answer(server, asked_anew(name))[1] == recorded_ids(name)


@pytest.mark.parametrize("kind", NOT_FINITE)
def test_sound_that_is_not_finite_is_a_400_that_harms_nobody(
    kind: str, golden_server: VllmServer, long_answer: list[int]
) -> None:
    for _ in range(2):
        with nobody_harmed(golden_server, long_answer):
            refused = golden_server.chat(about(NOT_FINITE[kind]))
        assert refused.status_code == 400, refused.text
        assert "finite" in refused.json()["error"]["message"]


@pytest.mark.parametrize("kind", NO_SOUND)
def test_bytes_without_sound_are_refused_and_harm_nobody(
    kind: str, golden_server: VllmServer, long_answer: list[int]
) -> None:
    with nobody_harmed(golden_server, long_answer):
        refused = golden_server.chat(about(NO_SOUND[kind]))
    # where vLLM's decoder fails, vLLM chooses the status; a 5xx is its word for that too
    assert refused.status_code >= 400, refused.text


def test_sound_that_is_no_base64_is_refused_and_harms_nobody(golden_server: VllmServer, long_answer: list[int]) -> None:
    item = {"type": "input_audio", "input_audio": {"data": "%%%", "format": "wav"}}
    with nobody_harmed(golden_server, long_answer):
        refused = golden_server.chat({"messages": [{"role": "user", "content": [item]}]})
    assert refused.status_code >= 400, refused.text


@pytest.mark.parametrize("kind", ANSWERED)
def test_odd_sound_is_answered_and_harms_nobody(kind: str, golden_server: VllmServer, long_answer: list[int]) -> None:
    with nobody_harmed(golden_server, long_answer):
        assert len(answer(golden_server, about(ANSWERED[kind]))[1]) == 16


def test_a_million_tokens_are_a_400_that_harms_nobody(golden_server: VllmServer, long_answer: list[int]) -> None:
    with nobody_harmed(golden_server, long_answer):
        refused = golden_server.chat({"messages": [{"role": "user", "content": MILLION_TOKENS}]})
    assert refused.status_code == 400, refused.text
    assert "2048" in refused.json()["error"]["message"]
