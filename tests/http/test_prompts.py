"""Requests -> chat messages, how many tokens they make, and which text may not go in."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
from contextlib import aclosing
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from golden_folders import DATA
from requests_with_audio import with_recordings
from vllm_server import VllmServer

from sidecar.chat_messages import AudioItem
from sidecar.chat_requests import ChatReader
from sidecar.engine.audio_items import longest_recording_s, recording_items, recording_reader
from sidecar.engine.client import Accepted, EngineRequest, Sampling
from sidecar.engine.http import HttpEngine, open_engine_http
from sidecar.engine.prompts import (
    Prompt,
    answer_recording,
    chat_prompt,
    count_prompt_tokens,
    read_aloud,
    require_room,
)
from sidecar.engine.spoken_turns import SpokenTurns
from sidecar.engine.text import TextTokenizer
from sidecar.errors import BadRequest, CheckpointError

LLM = DATA / "llm"
TEXT = TextTokenizer.from_folder(LLM / "checkpoint")
READER = ChatReader(
    require_plain=TEXT.require_plain,
    recording=recording_reader(60),
    spoken_turn=partial(SpokenTurns().item, text=TEXT),
)


def test_reading_aloud_asks_for_it_and_leaves_the_speech_section_open() -> None:
    assert read_aloud("Hello", "Read this.").messages == [
        {"role": "system", "content": "Read this."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "<tts_start>"},
    ]


def test_a_recording_comes_before_its_instruction() -> None:
    pieces = [AudioItem(b"one", 5), AudioItem(b"two", 3)]
    prompt = answer_recording(pieces, "Answer.", "Help.")
    *recording, instruction = prompt.messages[1]["content"]
    assert [base64.b64decode(part["input_audio"]["data"]) for part in recording] == [b"one", b"two"]
    assert instruction == {"type": "text", "text": "Answer."}
    assert prompt.items == pieces


def test_an_empty_instruction_or_system_prompt_leaves_no_trace() -> None:
    prompt = answer_recording([AudioItem(b"RIFF", 5)], "", "")
    assert [message["role"] for message in prompt.messages] == ["user", "assistant"]
    assert [part["type"] for part in prompt.messages[0]["content"]] == ["input_audio"]


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        (0, []),
        (1, [0]),
        (320, [0]),
        (321, [1]),
        (16_000, [13]),
        (48_000, [38]),
        (400_000, [313]),
        (400_001, [313, 0]),
        (960_000, [313, 313, 125]),
    ],
)
def test_a_recording_is_cut_where_the_model_cuts_it(samples: int, expected: list[int]) -> None:
    mono = np.linspace(-1, 1, samples, dtype=np.float32)
    items = recording_items(mono)
    assert [item.prompt_tokens - 2 for item in items] == expected
    sound = [soundfile.read(BytesIO(item.wav), dtype="float32")[0] for item in items]
    assert np.abs(np.concatenate([*sound, mono[:0]]) - mono).max(initial=0) <= 1 / 32768


@pytest.mark.parametrize("tokens", [*range(-2, 20), 314, 315, 316, 317, 318, 630, 2000, 16_382])
def test_the_longest_recording_takes_all_the_tokens_and_no_more(tokens: int) -> None:
    def taken(seconds: float) -> int:
        mono = np.zeros(round(seconds * 16_000), np.float32)
        return sum(item.prompt_tokens for item in recording_items(mono))

    longest_s = longest_recording_s(tokens)
    assert taken(longest_s) <= max(tokens, 0)
    assert taken(longest_s + 0.1) > tokens


def recorded_chats() -> list[Any]:
    """Every recorded conversation: with recordings, tools, tool results and spoken turns."""
    chats = json.loads((LLM / "cases.json").read_text(encoding="utf-8"))["cases"]
    chats += json.loads((DATA / "ta4" / "render.json").read_text(encoding="utf-8"))["cases"]
    return [pytest.param(chat, id=chat["name"]) for chat in chats if chat.get("request")]


@pytest.mark.parametrize("case", recorded_chats())
def test_counted_tokens_are_the_recorded_prompts(case: dict[str, Any]) -> None:
    chat = READER.read(json.dumps(with_recordings(case["request"], LLM / "audio")).encode())
    expected = case.get("prompt_token_ids_joined") or case["prompt_token_ids"]
    assert count_prompt_tokens(chat_prompt(chat.body, chat.items), TEXT) == len(expected)


def test_a_chat_that_asks_for_nothing_ends_with_its_last_turn_closed() -> None:
    words = {"messages": [{"role": "user", "content": "Hi"}]}
    closed = chat_prompt({**words, "add_generation_prompt": False}, ())
    assert count_prompt_tokens(closed, TEXT) == TEXT.count("<|BOT|>human\nHi<|EOT|>")


def test_a_reply_gets_what_the_context_leaves() -> None:
    hundred = Prompt([{"role": "user", "content": ""}], [AudioItem(b"", 100)])
    taken = count_prompt_tokens(hundred, TEXT)
    assert require_room(hundred, TEXT, 16_384) == 16_384 - 1 - taken
    assert require_room(hundred, TEXT, taken + 2) == 1
    with pytest.raises(BadRequest, match=f"{taken + 1} have to hold"):
        require_room(hundred, TEXT, taken + 1)


@pytest.mark.parametrize(
    "name", ["<|EOT|>", "<audio_patch>", "<tts_start>", "<audio_6561>", "<tool_call>", "<|im_end|>"]
)
def test_the_name_of_an_added_token_is_no_text(name: str) -> None:
    with pytest.raises(BadRequest, match="control token") as caught:
        TEXT.require_plain(f"say {name} now", "text")
    assert (caught.value.code, caught.value.param) == ("control_token", "text")
    assert name in caught.value.message


@pytest.mark.parametrize(
    "text", ["", "a < b > c", "<audio>", "<|EOT |>", "<audio_5\u0338>", "<tts start>", "<audio_7000>"]
)
def test_text_that_only_looks_like_a_control_token_may_be_spoken(text: str) -> None:
    TEXT.require_plain(text, "text")
    added = {TEXT.vocabulary.end_of_turn, TEXT.vocabulary.tts_start}
    assert not added & set(TEXT.encode(text))


def test_half_a_surrogate_pair_is_refused_and_not_stumbled_over() -> None:
    with pytest.raises(BadRequest, match="surrogate") as caught:
        TEXT.require_plain("ab\ud83d", "text")
    assert caught.value.code == "invalid_unicode"


def test_token_bytes_put_together_are_the_text() -> None:
    text = "龘😀𠮷 na\u00efve\n\n<tool_call>"
    assert b"".join(map(TEXT.token_bytes, TEXT.encode(text))) == text.encode()
    assert TEXT.token_bytes(10**9) == b""


def test_others_go_on_while_a_long_text_is_tokenized() -> None:
    ticks, done = 0, threading.Event()

    def encode() -> None:
        TEXT.encode("hello world this is text " * 40_000)
        done.set()

    threading.Thread(target=encode).start()
    while not done.wait(0.001):
        ticks += 1
    assert ticks > 20


def test_a_folder_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        TextTokenizer.from_folder(tmp_path)


def test_a_tokenizer_without_speech_tokens_is_refused(tmp_path: Path) -> None:
    tokenizer = json.loads((LLM / "checkpoint/tokenizer.json").read_text(encoding="utf-8"))
    tokenizer["added_tokens"] = [token for token in tokenizer["added_tokens"] if token["content"] != "<audio_17>"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    with pytest.raises(CheckpointError, match="<audio_17>"):
        TextTokenizer.from_folder(tmp_path)


def test_a_damaged_tokenizer_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{", encoding="utf-8")
    with pytest.raises(CheckpointError, match="cannot be read"):
        TextTokenizer.from_folder(tmp_path)


def test_a_recording_that_is_too_long_is_told_how_long_it_may_be() -> None:
    prompt = answer_recording([AudioItem(b"", 315)] * 4, "Answer.", "Help.")
    with pytest.raises(BadRequest, match=r"may last (\d+\.\d) s") as caught:
        require_room(prompt, TEXT, 1024)
    assert caught.value.code == "context_length_exceeded"
    words = count_prompt_tokens(prompt, TEXT) - 4 * 315
    assert f"{longest_recording_s(1024 - 2 - words):.1f} s" in caught.value.message
    with pytest.raises(BadRequest, match="shorter text"):
        require_room(read_aloud("word " * 2000, ""), TEXT, 1024)


def tone(samples: int) -> list[AudioItem]:
    return recording_items(np.sin(np.arange(samples, dtype=np.float32) / 7) / 3)


@pytest.mark.vllm
@pytest.mark.parametrize(
    "prompt",
    [
        read_aloud("Hello, 你好 😀!", "Read this paragraph at a natural pace."),
        read_aloud("\n\nHello", ""),
        answer_recording(tone(1), "", ""),
        answer_recording(tone(56_000), "", "Help."),
        answer_recording(tone(56_000), "Answer the question.", "Help."),
        answer_recording(tone(960_000), "Answer.", "Help."),
        answer_recording(tone(800_001), "", ""),
    ],
    ids=["text", "no system turn", "one sample", "recording", "and text", "a minute", "a last piece of one sample"],
)
def test_the_engine_s_prompt_has_the_counted_tokens(golden_server: VllmServer, prompt: Prompt) -> None:
    async def accepted() -> Accepted:
        async with open_engine_http(url=golden_server.base_url) as http:
            sampling = Sampling(0.0, 1.0, -1, 0.0, 1.0, 1, 0)
            reply = HttpEngine(http).generate(EngineRequest("r", prompt.messages, sampling))
            async with aclosing(reply):
                first = await anext(reply)
        assert isinstance(first, Accepted)
        return first

    assert len(asyncio.run(accepted()).prompt_token_ids) == count_prompt_tokens(prompt, TEXT)
