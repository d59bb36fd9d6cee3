"""Plain vLLM with the plugin installed, no flag of ours: what it answers, when it stops, what it refuses."""

from __future__ import annotations

import io
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest
import soundfile
from golden_folders import DATA
from requests_with_audio import GREEDY, audio_item, float_wav
from vllm_server import VllmServer

pytestmark = pytest.mark.vllm

SPEECH = DATA / "llm" / "audio" / "speech.wav"
TOKENIZER = json.loads((DATA / "llm" / "checkpoint" / "tokenizer.json").read_text(encoding="utf-8"))
NAMES = {entry["content"]: entry["id"] for entry in TOKENIZER["added_tokens"]}


def asking(*items: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(items)}], "max_tokens": 8, **GREEDY, **fields}


def ids_of(server: VllmServer, body: dict[str, Any]) -> list[int]:
    answer = server.chat(body)
    assert answer.status_code == 200, answer.text
    token_ids: list[int] = answer.json()["choices"][0]["token_ids"]
    return token_ids


@pytest.mark.parametrize("name", ["<|EOT|>", "<|endoftext|>", "<|im_end|>"])
def test_a_reply_ends_at_each_end_token_without_any_flag(name: str, golden_server: VllmServer) -> None:
    # this random model never ends by itself, so it is left no other token; nothing here says where to stop
    body = {
        "messages": [{"role": "user", "content": "Hi"}],
        "max_tokens": 4,
        "allowed_token_ids": [NAMES[name]],
        "return_token_ids": True,
    }
    choice = golden_server.chat(body).json()["choices"][0]
    assert (choice["finish_reason"], choice["token_ids"]) == ("stop", [NAMES[name]])


def test_streamed_token_ids_equal_those_of_the_whole_answer(golden_server: VllmServer) -> None:
    body = asking(audio_item(SPEECH.read_bytes()), max_tokens=32)
    whole = ids_of(golden_server, body)
    streamed: list[int] = []
    url = f"{golden_server.base_url}/v1/chat/completions"
    with httpx.stream("POST", url, json={"model": golden_server.model, **body, "stream": True}, timeout=60) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                for choice in json.loads(line.removeprefix("data: "))["choices"]:
                    streamed += choice.get("token_ids") or []
    assert len(streamed) == 32
    assert streamed == whole


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_a_recording_that_is_not_finite_is_refused_and_harms_no_later_request(
    value: float, golden_server: VllmServer
) -> None:
    fixed = asking(audio_item(SPEECH.read_bytes()), max_tokens=16)
    before = ids_of(golden_server, fixed)
    samples = np.zeros(16000, dtype=np.float32)
    samples[100:200] = value
    refused = golden_server.chat(asking(audio_item(float_wav(samples))))
    assert refused.status_code == 400, refused.text
    assert "finite" in refused.json()["error"]["message"]
    assert ids_of(golden_server, fixed) == before


@pytest.mark.parametrize(
    ("rate_hz", "channels", "seconds", "placeholders"),
    [
        (16000, 1, 1.0, 13),
        (44100, 2, 1.0, 13),
        (8000, 1, 2.0, 25),
        (16000, 1, 60.0, 751),
        (16000, 1, 1 / 16000, 0),
        (16000, 1, 320 / 16000, 0),
        (16000, 1, 321 / 16000, 1),
    ],
)
def test_any_rate_channel_count_and_length_costs_the_counted_placeholders(
    rate_hz: int, channels: int, seconds: float, placeholders: int, golden_server: VllmServer
) -> None:
    samples = np.random.default_rng(0).normal(0, 0.1, (round(rate_hz * seconds), channels)).astype(np.float32)
    answer = golden_server.chat(asking(audio_item(float_wav(samples, rate_hz)), max_tokens=1))
    assert answer.status_code == 200, answer.text
    prompt = answer.json()["prompt_token_ids"]
    chunks = -(-round(seconds * 16000) // 400000)
    assert prompt.count(NAMES["<audio_patch>"]) == placeholders
    assert prompt.count(NAMES["<audio_start>"]) == prompt.count(NAMES["<audio_end>"]) == chunks


def test_a_long_recording_is_the_same_in_one_item_as_in_items_of_25_seconds(golden_server: VllmServer) -> None:
    samples = np.random.default_rng(6).normal(0, 0.1, 60 * 16000).astype(np.float32)
    pieces = [audio_item(float_wav(samples[start : start + 400_000])) for start in range(0, len(samples), 400_000)]
    whole = golden_server.chat(asking(audio_item(float_wav(samples)), max_tokens=24)).json()
    in_pieces = golden_server.chat(asking(*pieces, max_tokens=24)).json()
    assert len(pieces) == 3 and whole["prompt_token_ids"] == in_pieces["prompt_token_ids"]
    assert whole["choices"][0]["token_ids"] == in_pieces["choices"][0]["token_ids"]


def test_a_recording_longer_than_the_context_is_refused_with_the_limit_in_seconds(golden_server: VllmServer) -> None:
    samples = np.zeros(163 * 16000, dtype=np.float32)
    answer = golden_server.chat(asking(audio_item(float_wav(samples))))
    assert answer.status_code == 400, answer.text
    # 2048 ids: six blocks of 25 s, and 156 placeholders in the seventh
    assert "one item may have 162.5 s" in answer.json()["error"]["message"]


def test_a_recording_longer_than_vllm_decodes_is_refused_with_the_limit_in_seconds(golden_server: VllmServer) -> None:
    sink = io.BytesIO()
    soundfile.write(sink, np.zeros(601 * 8000, dtype=np.int16), 8000, format="WAV", subtype="PCM_16")
    answer = golden_server.chat(asking(audio_item(sink.getvalue())))
    assert answer.status_code == 400, answer.text
    assert "600" in answer.json()["error"]["message"]


def test_requests_that_arrive_together_answer_as_when_alone(golden_server: VllmServer) -> None:
    rng = np.random.default_rng(3)
    clips = [float_wav(rng.normal(0, 0.1, round(16000 * s)).astype(np.float32)) for s in (0.01, 0.4, 1.3, 26.0, 3.7)]
    # louder by one part in a million: the same answer, and nothing that a cache has seen
    again = [float_wav(soundfile.read(io.BytesIO(clip), dtype="float32")[0] * np.float32(1 + 1e-6)) for clip in clips]
    alone = [ids_of(golden_server, asking(audio_item(clip))) for clip in clips]
    with ThreadPoolExecutor(len(clips)) as pool:
        together = list(pool.map(lambda clip: ids_of(golden_server, asking(audio_item(clip))), again))
    assert together == alone
    assert len({tuple(ids) for ids in alone}) > 1  # or the answers would not tell recordings apart


def test_text_that_names_a_placeholder_does_not_take_the_server_down(golden_server: VllmServer) -> None:
    # vLLM's own chat endpoint cannot tell it from ours; the answer may be anything, the server has to live
    text = {"type": "text", "text": "<audio_patch><audio_start><audio_patch><audio_end>"}
    golden_server.chat(asking(text, audio_item(SPEECH.read_bytes())))
    golden_server.chat(asking(text))
    assert httpx.get(f"{golden_server.base_url}/health", timeout=30).status_code == 200
    assert len(ids_of(golden_server, asking({"type": "text", "text": "Hi"}))) == 8


def test_an_empty_recording_is_a_request_error(golden_server: VllmServer) -> None:
    answer = golden_server.chat(asking(audio_item(float_wav(np.zeros((0, 1), dtype=np.float32)))))
    assert answer.status_code == 400, answer.text
    assert "at least one sample" in answer.json()["error"]["message"]
    assert httpx.get(f"{golden_server.base_url}/health", timeout=30).status_code == 200
