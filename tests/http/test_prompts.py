"""Requests -> chat messages, how many tokens they make, and which text may not go in."""

from __future__ import annotations

import base64
import json
import wave
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from golden_folders import DATA

from sidecar.engine.prompts import (
    Prompt,
    answer_recording,
    count_prompt_tokens,
    placeholders,
    read_aloud,
    room_for_reply,
)
from sidecar.engine.text import TextTokenizer
from sidecar.errors import BadRequest, CheckpointError

LLM = DATA / "llm"
TEXT = TextTokenizer.from_folder(LLM / "checkpoint")


def test_reading_aloud_asks_for_it_and_leaves_the_speech_section_open() -> None:
    assert read_aloud("Hello", "Read this.").messages == [
        {"role": "system", "content": "Read this."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "<tts_start>"},
    ]


def test_a_recording_comes_before_its_instruction() -> None:
    prompt = answer_recording(b"RIFF", 16_000, "Answer.", "Help.")
    recording, instruction = prompt.messages[1]["content"]
    assert base64.b64decode(recording["input_audio"]["data"]) == b"RIFF"
    assert instruction == {"type": "text", "text": "Answer."}
    assert prompt.recording_samples == (16_000,)


def test_an_empty_instruction_or_system_prompt_leaves_no_trace() -> None:
    prompt = answer_recording(b"RIFF", 16_000, "", "")
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
def test_placeholders_follow_the_models_formula(samples: int, expected: list[int]) -> None:
    assert placeholders(samples) == expected


def plain_cases() -> list[Any]:
    cases = json.loads((LLM / "cases.json").read_text(encoding="utf-8"))["cases"]
    return [
        case
        for case in cases
        if case.get("request")
        and "tools" not in case["request"]
        and all("tts_content" not in message for message in case["request"]["messages"])
    ]


@pytest.mark.parametrize("case", plain_cases(), ids=lambda case: case["name"])
def test_counted_tokens_are_the_recorded_prompts(case: dict[str, Any]) -> None:
    messages = list(case["request"]["messages"])
    if case["request"]["add_generation_prompt"]:
        messages.append({"role": "assistant", "content": ""})
    samples = samples_in_prompt(case)
    expected = case.get("prompt_token_ids_joined") or case["prompt_token_ids"]
    assert count_prompt_tokens(Prompt(messages, samples), TEXT) == len(expected)


def samples_in_prompt(case: dict[str, Any]) -> tuple[int, ...]:
    lengths: list[int] = []
    for chunk in case["audio_chunks"]:
        if chunk["chunk"] == 0:
            lengths.append(0)
        lengths[-1] += chunk["samples"]
    return tuple(lengths)


def test_a_reply_gets_what_the_context_leaves() -> None:
    assert room_for_reply(100, 16_384, 4096) == 4096
    assert room_for_reply(16_000, 16_384, 4096) == 383
    with pytest.raises(BadRequest, match="16384"):
        room_for_reply(16_383, 16_384, 4096)


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


def test_the_recorded_sound_files_have_the_samples_that_are_counted() -> None:
    with wave.open(BytesIO((LLM / "audio/chirp.wav").read_bytes())) as sound:
        assert placeholders(sound.getnframes()) == [17]
