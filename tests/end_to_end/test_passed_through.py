"""One port for text too: vLLM's OpenAI endpoints through ours."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

pytestmark = pytest.mark.vllm


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": [{"role": "user", "content": "Hello!"}], **fields}


def test_the_model_goes_by_the_name_that_was_typed(client: httpx.Client) -> None:
    (model,) = client.get("/v1/models").json()["data"]
    assert model["id"] == "tiny"


@pytest.mark.parametrize("temperature", [0, 0.7])
def test_a_text_chat_ends_by_itself(client: httpx.Client, temperature: float) -> None:
    answer = client.post("/v1/chat/completions", json=chat(temperature=temperature))
    assert answer.status_code == 200, answer.text
    (choice,) = answer.json()["choices"]
    assert choice["finish_reason"] == "stop"
    assert answer.json()["usage"]["completion_tokens"] <= 100


def test_a_chat_streams(client: httpx.Client) -> None:
    with client.stream("POST", "/v1/chat/completions", json=chat(stream=True, temperature=0)) as answer:
        events = [line.removeprefix("data: ") for line in answer.iter_lines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    text = "".join(json.loads(event)["choices"][0]["delta"].get("content") or "" for event in events[:-1])
    whole = client.post("/v1/chat/completions", json=chat(temperature=0)).json()
    assert text == whole["choices"][0]["message"]["content"]


def test_a_chat_hears_a_recording(client: httpx.Client, recordings: Path) -> None:
    sound = base64.b64encode((recordings / "question.wav").read_bytes()).decode()
    parts = [{"type": "input_audio", "input_audio": {"data": sound, "format": "wav"}}]
    answer = client.post("/v1/chat/completions", json=chat(messages=[{"role": "user", "content": parts}]))
    assert answer.status_code == 200, answer.text
    text_alone = client.post("/v1/chat/completions", json=chat()).json()["usage"]["prompt_tokens"]
    assert answer.json()["usage"]["prompt_tokens"] > text_alone + 30, "three seconds are more than 30 placeholders"


def test_a_completion_continues_a_text(client: httpx.Client) -> None:
    answer = client.post("/v1/completions", json={"model": "tiny", "prompt": "Once upon", "max_tokens": 4})
    assert answer.status_code == 200, answer.text
    assert answer.json()["usage"]["completion_tokens"] <= 4


@pytest.mark.parametrize("path", ["/tokenize", "/v1/embeddings", "/docs", "/inference/v1/generate", "/load"])
def test_nothing_else_of_the_engine_is_reachable(client: httpx.Client, path: str) -> None:
    assert client.post(path, json={}).status_code == 404


def test_a_url_of_a_recording_is_not_fetched(client: httpx.Client) -> None:
    parts = [{"type": "audio_url", "audio_url": {"url": "http://127.0.0.1:1/secret.wav"}}]
    answer = client.post("/v1/chat/completions", json=chat(messages=[{"role": "user", "content": parts}]))
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]


def test_alive_and_ready(client: httpx.Client) -> None:
    assert client.get("/health").status_code == 200
    assert client.get("/ready").status_code == 200
