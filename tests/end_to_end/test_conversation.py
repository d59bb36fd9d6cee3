"""A conversation by voice on the real server: what was said is in the next prompt as the model itself wrote it."""

from __future__ import annotations

import base64
import io
import json
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from sidecar.engine.interleave import interleave
from sidecar.engine.text import TextTokenizer

pytestmark = pytest.mark.vllm

OPEN = {"role": "assistant", "content": "<tts_start>"}
OPENED = {"continue_final_message": True, "add_generation_prompt": False, "return_token_ids": True}
SYSTEM = {"role": "system", "content": "You are a helpful assistant."}
#: Three pieces, two of 25 s and one that is too short for a placeholder.
LONG_SAMPLES = 2 * 400_000 + 320


@pytest.fixture(scope="module")
def text(server: Any) -> TextTokenizer:
    return TextTokenizer.from_folder(Path(model_folder(server)))


def model_folder(server: Any) -> str:
    """The checkpoint that is served."""
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(server.engine_socket))) as engine:
        root: str = engine.get("http://vllm/v1/models").json()["data"][0]["root"]
    return root


def tone(samples: int, pitch: int) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(16_000)
        period = b"".join((3000 * (i % pitch) // pitch).to_bytes(2, "little") for i in range(pitch))
        out.writeframes((period * (samples // pitch + 1))[: 2 * samples])
    return file.getvalue()


def heard(recording: bytes) -> dict[str, Any]:
    data = base64.b64encode(recording).decode()
    return {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}]}


def said(answer: dict[str, Any]) -> dict[str, Any]:
    """The answer as a client sends it back."""
    message = answer["choices"][0]["message"]
    return {"role": "assistant", "content": message["content"], "tts_content": message["tts_content"]}


def ask(client: httpx.Client, *messages: dict[str, Any], **fields: Any) -> dict[str, Any]:
    body = {"model": "tiny", "messages": [SYSTEM, *messages, OPEN], **OPENED, **fields}
    answer = client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    whole: dict[str, Any] = answer.json()
    return whole


def streamed(client: httpx.Client, *messages: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """The same answer, put together from its deltas."""
    body = {"model": "tiny", "messages": [SYSTEM, *messages, OPEN], **OPENED, **fields, "stream": True}
    choice: dict[str, Any] = {"message": {"content": None, "tts_content": {"tts_text": "", "tts_audio": ""}}}
    whole: dict[str, Any] = {"choices": [choice | {"token_ids": []}]}
    (choice,) = whole["choices"]
    for event in events(client, body):
        whole["prompt_token_ids"] = event.get("prompt_token_ids") or whole.get("prompt_token_ids")
        for part in event["choices"]:
            choice["token_ids"] += part.get("token_ids") or []
            choice["finish_reason"] = part["finish_reason"]
            for key, piece in part["delta"].get("tts_content", {}).items():
                choice["message"]["tts_content"][key] += piece
    return whole


def events(client: httpx.Client, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    with client.stream("POST", "/v1/chat/completions", json=body) as answer:
        assert answer.status_code == 200, answer.read()
        lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    yield from map(json.loads, lines[:-1])


def pieces(samples: int) -> list[int]:
    return [min(400_000, samples - start) for start in range(0, samples, 400_000)]


def in_the_references_way(text: TextTokenizer, turns: list[list[int] | int]) -> list[int]:
    """Ids of the prompt: a number is a recording of so many samples, ids are what was generated for a reply."""
    words = text.vocabulary
    ids = text.encode(f"<|BOT|>system\n{SYSTEM['content']}<|EOT|>")
    for turn in turns:
        if isinstance(turn, int):
            ids += text.encode("<|BOT|>human\n")
            for piece in pieces(turn):
                ids += [words.audio_start, *[words.audio_patch] * ((piece + 959) // 1280), words.audio_end]
            ids.append(words.end_of_turn)
        else:
            assert turn[-1] == words.end_of_turn
            ids += [*text.encode("<|BOT|>assistant\n"), words.tts_start, *turn[:-1], words.end_of_turn]
    return [*ids, *text.encode("<|BOT|>assistant\n<tts_start>")]


@pytest.mark.parametrize("way", [ask, streamed], ids=["whole", "streamed"])
def test_the_third_prompt_is_what_the_model_heard_and_said(client: httpx.Client, text: TextTokenizer, way: Any) -> None:
    lengths = [16_000, 30_001, 40_000]
    history: list[dict[str, Any]] = []
    turns: list[list[int] | int] = []
    for turn, samples in enumerate(lengths):
        history.append(heard(tone(samples, 50 + turn)))
        turns.append(samples)
        answer = way(client, *history, seed=turn + 1)
        assert answer["prompt_token_ids"] == in_the_references_way(text, turns)
        assert answer["choices"][0]["finish_reason"] == "stop"
        history.append(said(answer))
        turns.append(answer["choices"][0]["token_ids"])
    spoken = said(answer)["tts_content"]
    assert "speech!" in spoken["tts_text"]
    assert "\N{EIGHTH NOTE}" in spoken["tts_text"], "a character that lies across two tokens, with speech between"
    assert spoken["tts_audio"].count("<audio_") > 100


def test_a_turn_that_was_said_elsewhere_is_built_from_its_text_and_codes(
    client: httpx.Client, text: TextTokenizer
) -> None:
    words, codes = "今天天气很好，龘😀", [5001, 3215, 4548, 2309, 291, 1077]
    tts_content = {"tts_text": words, "tts_audio": "".join(f"<audio_{code}>" for code in [*codes, 6561])}
    answer = ask(client, {"role": "user", "content": "Hi"}, {"role": "assistant", "tts_content": tts_content})
    section = interleave(text.encode(words), codes, text.vocabulary)
    ids = answer["prompt_token_ids"]
    start = ids.index(text.vocabulary.tts_start)
    assert ids[start : start + len(section) + 1] == [*section, text.vocabulary.end_of_turn]


def test_a_long_recording_makes_the_prompt_of_one_item(client: httpx.Client, text: TextTokenizer) -> None:
    answer = ask(client, heard(tone(LONG_SAMPLES, 60)), max_tokens=1)
    assert answer["prompt_token_ids"] == in_the_references_way(text, [LONG_SAMPLES])
    assert answer["choices"][0]["finish_reason"] == "length"


def test_a_recording_that_does_not_fit_is_refused_with_the_seconds_that_would(client: httpx.Client) -> None:
    body = {"messages": [SYSTEM, heard(tone(400 * 16_000, 60)), OPEN], **OPENED}
    refused = client.post("/v1/chat/completions", json=body)
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "context_length_exceeded"
    longest_s = float(refused.json()["error"]["message"].partition("may last ")[2].partition(" s")[0])
    assert 300 < longest_s < 330
    fits = ask(client, heard(tone(int(longest_s * 16_000), 60)), max_tokens=1)
    assert fits["usage"]["prompt_tokens"] in (4096 - 3, 4096 - 2)


def test_tools_may_be_offered_in_writing_and_in_speech(client: httpx.Client, text: TextTokenizer) -> None:
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
    question = {"role": "user", "content": "Hi"}
    written = client.post("/v1/chat/completions", json={"messages": [question], "tools": tools})
    assert written.status_code == 200, written.text
    answer = ask(client, question, tools=tools)
    schemas = text.encode("<|BOT|>tool_json_schemas\n")
    ids = answer["prompt_token_ids"]
    assert any(ids[start : start + len(schemas)] == schemas for start in range(len(ids)))
    assert answer["choices"][0]["message"]["tool_calls"] == []
    assert answer["choices"][0]["message"]["tts_content"]["tts_text"]


def test_two_choices_are_read_apart(client: httpx.Client) -> None:
    first, second = ask(client, {"role": "user", "content": "Hi"}, n=2, temperature=1.0)["choices"]
    assert first["token_ids"] != second["token_ids"]
    for choice in (first, second):
        assert choice["message"]["tts_content"]["tts_audio"].count("<audio_") > 100
