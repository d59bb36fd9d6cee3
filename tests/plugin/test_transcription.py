"""`/v1/audio/transcriptions` and `/v1/audio/translations` of plain vLLM with the plugin installed."""

from __future__ import annotations

import io
import json
from itertools import pairwise
from typing import Any

import httpx
import numpy as np
import pytest
import soundfile
from golden_folders import DATA
from requests_with_audio import audio_item
from transformers import AutoTokenizer
from vllm_server import VllmServer

from step_audio_vllm import transcription
from step_audio_vllm.reply_text import reply_text
from step_audio_vllm.vocabulary import AUDIO_END, AUDIO_PATCH, AUDIO_START

CHECKPOINT = DATA / "llm" / "checkpoint"
SPEECH = (DATA / "llm" / "audio" / "speech.wav").read_bytes()
#: The system turns of the authors, and ours for English.
TRANSCRIBE = "请记录下你所听到的语音内容。"
TO_CHINESE = "请仔细聆听这段语音，然后将其内容翻译成中文。"
TO_ENGLISH = "请仔细聆听这段语音，然后将其内容翻译成英文。"
TOKENS = 24

TASKS = [
    ("transcriptions", {}, TRANSCRIBE),
    ("transcriptions", {"language": "ja"}, TRANSCRIBE),
    ("transcriptions", {"language": "fr"}, TRANSCRIBE),
    ("transcriptions", {"prompt": "Weather"}, TRANSCRIBE + "\n参考文本：Weather"),
    ("transcriptions", {"prompt": "Weather", "hotwords": "上海"}, TRANSCRIBE + "\n参考文本：Weather\n热词：上海"),
    ("translations", {}, TO_ENGLISH),
    ("translations", {"to_language": "en"}, TO_ENGLISH),
    ("translations", {"to_language": "zh"}, TO_CHINESE),
]


def ask(server: VllmServer, path: str, wav: bytes = SPEECH, **fields: Any) -> httpx.Response:
    """Ask for at most `TOKENS` tokens: this random model never ends by itself."""
    data = {"model": server.model, "max_completion_tokens": TOKENS, **fields}
    files = {"file": ("a.wav", wav, "audio/wav")}
    return httpx.post(f"{server.base_url}/v1/audio/{path}", data=data, files=files, timeout=120)


def text_of(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    text: str = answer.json()["text"]
    return text


def events_of(answer: httpx.Response) -> list[dict[str, Any]]:
    assert answer.status_code == 200, answer.text
    lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def chat(server: VllmServer, system: str) -> dict[str, Any]:
    """The same system turn and recording, asked in a chat."""
    messages = [{"role": "system", "content": system}, {"role": "user", "content": [audio_item(SPEECH)]}]
    body = {"messages": messages, "max_tokens": TOKENS, "temperature": 0, "return_token_ids": True}
    answer = server.chat(body)
    assert answer.status_code == 200, answer.text
    reply: dict[str, Any] = answer.json()
    return reply


def noise(seconds: float, seed: int = 0) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(seed)
    return rng.normal(0, 0.1, round(seconds * 16000)).clip(-1, 1).astype(np.float32)


def wav_of(samples: np.ndarray[Any, Any]) -> bytes:
    sink = io.BytesIO()
    soundfile.write(sink, samples, 16000, format="WAV", subtype="PCM_16")
    return sink.getvalue()


@pytest.mark.vllm
@pytest.mark.parametrize(("path", "fields", "system"), TASKS)
def test_the_text_and_the_prompts_length_are_those_of_the_chat_with_its_system_turn(
    path: str, fields: dict[str, str], system: str, golden_server: VllmServer
) -> None:
    expected = chat(golden_server, system)
    assert text_of(ask(golden_server, path, **fields)) == reply_text(expected["choices"][0]["message"]["content"])
    streamed = ask(golden_server, path, stream="true", stream_include_usage="true", **fields)
    usage = events_of(streamed)[-1]["usage"]
    assert usage["prompt_tokens"] == len(expected["prompt_token_ids"])


@pytest.mark.vllm
@pytest.mark.parametrize("system", [TRANSCRIBE, TO_CHINESE, TO_ENGLISH, TRANSCRIBE + "\n热词：<b>, 上海"])
def test_the_prompts_ids_are_those_of_the_chat(system: str, golden_server: VllmServer) -> None:
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    start, patch, end = (tokenizer.convert_tokens_to_ids(name) for name in (AUDIO_START, AUDIO_PATCH, AUDIO_END))
    ids = chat(golden_server, system)["prompt_token_ids"]
    block = slice(ids.index(start), ids.index(end) + 1)
    assert set(ids[block]) == {start, patch, end}
    ids[block] = [patch]
    assert transcription.prompt_ids(tokenizer, system, model=golden_server.model) == ids


@pytest.mark.vllm
@pytest.mark.parametrize("path", ["transcriptions", "translations"])
def test_no_speech_token_reaches_the_user_whole_or_streamed(path: str, golden_server: VllmServer) -> None:
    system = TRANSCRIBE if path == "transcriptions" else TO_ENGLISH
    assert "<audio_" in chat(golden_server, system)["choices"][0]["message"]["content"], "or this test shows nothing"
    whole = text_of(ask(golden_server, path))
    assert "<" not in whole
    events = events_of(ask(golden_server, path, stream="true"))
    assert "".join(event["choices"][0]["delta"]["content"] for event in events) == whole
    assert events[-1]["choices"][0]["finish_reason"] == "length"


@pytest.mark.vllm
@pytest.mark.parametrize(("fields", "between"), [({}, " "), ({"language": "en"}, " "), ({"language": "zh"}, "")])
def test_a_minute_is_cut_in_its_pauses_and_every_sample_is_heard_once(
    fields: dict[str, str], between: str, golden_server: VllmServer
) -> None:
    minute = noise(60)
    cuts = [0, 22 * 16000, 43 * 16000, 60 * 16000]
    for cut in cuts[1:3]:
        minute[cut : cut + 8000] = 0
    clips = [wav_of(minute[start:end]) for start, end in pairwise(cuts)]
    texts = [text_of(ask(golden_server, "transcriptions", clip, **fields)) for clip in clips]
    assert len(set(texts)) == 3
    assert text_of(ask(golden_server, "transcriptions", wav_of(minute), **fields)) == between.join(texts)


@pytest.mark.vllm
def test_a_whole_block_of_sound_is_not_cut(golden_server: VllmServer) -> None:
    usages = [
        events_of(ask(golden_server, "transcriptions", wav_of(noise(seconds)), stream="true", stream_include_usage="1"))
        for seconds in (25.0, 25.01)
    ]
    ends = [
        sum(1 for event in events for choice in event["choices"] if choice.get("finish_reason")) for events in usages
    ]
    assert ends == [1, 2]


@pytest.mark.vllm
@pytest.mark.parametrize(
    ("path", "fields", "said"),
    [
        ("translations", {"to_language": "ja"}, "translates to en and zh"),
        ("transcriptions", {"to_language": "en"}, "/v1/audio/translations"),
        ("transcriptions", {"language": "klingon"}, "klingon"),
        ("transcriptions", {"prompt": "a<|EOT|>b"}, "control tokens"),
        ("transcriptions", {"hotwords": "<audio_5>"}, "control tokens"),
        ("transcriptions", {"response_format": "verbose_json"}, "verbose_json"),
        ("transcriptions", {"response_format": "srt"}, "response_format"),
    ],
)
def test_what_the_model_does_not_do_is_refused(
    path: str, fields: dict[str, str], said: str, golden_server: VllmServer
) -> None:
    answer = ask(golden_server, path, **fields)
    assert answer.status_code == 400, answer.text
    assert said in answer.json()["error"]["message"]


@pytest.mark.vllm
def test_a_recording_that_cannot_be_used_harms_no_later_request(golden_server: VllmServer) -> None:
    before = text_of(ask(golden_server, "transcriptions"))
    sink = io.BytesIO()
    soundfile.write(sink, np.full(16000, np.nan, dtype=np.float32), 16000, format="WAV", subtype="FLOAT")
    assert ask(golden_server, "transcriptions", sink.getvalue()).status_code == 400
    assert ask(golden_server, "transcriptions", b"no sound").status_code == 400
    assert text_of(ask(golden_server, "transcriptions", wav_of(np.zeros(1, dtype=np.float32)))) is not None
    assert text_of(ask(golden_server, "transcriptions")) == before


def test_a_model_without_turns_is_asked_in_its_own_format() -> None:
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    ids = transcription.prompt_ids(tokenizer, TRANSCRIBE, model="stepfun-ai/Step-Audio-2-mini-Base")
    assert ids == [*tokenizer.encode(TRANSCRIBE), tokenizer.convert_tokens_to_ids(AUDIO_PATCH)]


def test_languages_are_those_that_the_authors_show() -> None:
    assert set(transcription.LANGUAGES) == {"en", "zh", "ja"}
    assert set(transcription.TARGETS) == {"en", "zh"}
