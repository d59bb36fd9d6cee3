"""One number changed anywhere in a recording of prompts and replies is seen by the command that compares it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import compare
import compare_llm
import pytest
import recorded_chats
import torch
from compare_llm import PADDED_BATCH
from golden_folders import DATA
from safetensors.torch import load_file
from torch import Tensor

from sidecar.engine.text import TextTokenizer

#: A file of a ta4 recording, and a place in it: the first list along the way that has the next key is followed.
TA4 = [
    ("split.json", "token_ids"),
    ("split.json", "expected", "speech_text_token_ids"),
    ("split.json", "expected", "content_token_ids"),
    ("split.json", "expected", "speech_codes"),
    ("split.json", "expected", "content_text"),
    ("split.json", "streams", "deltas"),
    ("interleave.json", "text_token_ids"),
    ("interleave.json", "speech_codes"),
    ("interleave.json", "expected_token_ids"),
    ("render.json", "prompt_token_ids"),
    ("tool_calls.json", "token_ids"),
    ("tool_calls.json", "expected", "content"),
    ("tool_calls.json", "expected", "tool_calls", "name"),
    ("tool_calls.json", "expected", "tool_calls", "arguments"),
    ("tool_calls.json", "expected", "tool_calls", "arguments_json"),
]
LLM = [
    ("tokenized_pieces",),
    ("prompt_token_ids",),
    ("audio_chunks", "samples"),
    ("audio_chunks", "mel_frames"),
    ("audio_chunks", "audio_tokens"),
    ("audio_chunks", "first_patch_position"),
    ("greedy", "token_ids"),
    ("greedy", "logit_gaps"),
    ("greedy", "first_step_top5"),
    ("greedy", "split", "speech_codes"),
    ("greedy", "split", "content_token_ids"),
    ("greedy_padded_batch", "logit_gaps"),
]


def changed(value: Any) -> Any:
    """The same with its first number, or text, another one."""
    if isinstance(value, dict):
        key = next(iter(value))
        return {**value, key: changed(value[key])}
    if isinstance(value, list):
        return [changed(value[0]), *value[1:]]
    return f"{value}x" if isinstance(value, str) else value + 1


def at(value: Any, *keys: str) -> Any:
    """The same with what is found at `keys` changed; of a list's items, the first that has something there."""
    if isinstance(value, list):
        place = next(i for i, one in enumerate(value) if has(one, *keys))
        return [*value[:place], at(value[place], *keys), *value[place + 1 :]]
    first, *rest = keys
    return {**value, first: at(value[first], *rest) if rest else changed(value[first])}


def has(value: Any, *keys: str) -> bool:
    if isinstance(value, list):
        return any(has(one, *keys) for one in value)
    found = value.get(keys[0])
    return has(found, *keys[1:]) if found and keys[1:] else bool(found)


def rewrite(file: Path, *keys: str) -> None:
    recorded = json.loads(file.read_bytes())
    file.write_text(json.dumps(at(recorded, "cases", *keys), ensure_ascii=False), encoding="utf-8")


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    for kind in ("llm", "ta4"):
        shutil.copytree(DATA / kind, tmp_path / kind)
    return tmp_path


@pytest.mark.parametrize(("file", "keys"), [(file, keys) for file, *keys in TA4], ids=map(".".join, TA4))
def test_a_change_in_a_recorded_token_stream_is_seen(file: str, keys: list[str], recordings: Path) -> None:
    rewrite(recordings / "ta4" / file, *keys)
    assert not all(row.good for row in compare.compare_folder(recordings / "ta4")[1])


def test_ready_made_ids_among_the_pieces_of_a_raw_recording_reach_vllm_as_they_are(recordings: Path) -> None:
    text = TextTokenizer.from_folder(recordings / "llm" / "checkpoint")
    ids = [text.vocabulary.first_speech_id, text.vocabulary.tts_end]
    case = {"name": "new", "template": "raw", "messages": ["Say", {"type": "token", "token": ids}]}
    body = recorded_chats.body_of(case, recordings / "llm" / "audio", text)
    assert list(recorded_chats.ids_of_items(body["messages"], text)) == [ids]


@pytest.fixture
def scripted_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers as recorded, whatever the folder that it is asked about says by now."""
    cases = json.loads((DATA / "llm" / "cases.json").read_bytes())["cases"]
    answers: dict[str, Any] = {}
    for case in cases:
        prompt = {"prompt_token_ids": case["prompt_token_ids"], "chat_prompt_token_ids": case["prompt_token_ids"]}
        answers[case["name"]] = {**case["greedy"], **prompt}
        answers[case["name"] + PADDED_BATCH] = {**case.get("greedy_padded_batch", {}), **prompt}
    logits = load_file(DATA / "llm" / "first_logits.safetensors")

    def run(_: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
        return answers, {name: torch.log_softmax(values, dim=-1) for name, values in logits.items()}

    monkeypatch.setattr(compare_llm, "run_in_vllm", run)


@pytest.mark.usefixtures("scripted_vllm")
def test_an_engine_that_answers_as_recorded_passes(recordings: Path) -> None:
    assert [str(row) for row in compare.compare_folder(recordings / "llm")[1] if not row.good] == []


@pytest.mark.usefixtures("scripted_vllm")
@pytest.mark.parametrize("keys", LLM, ids=map(".".join, LLM))
def test_a_change_in_a_recorded_prompt_or_reply_is_seen(keys: tuple[str, ...], recordings: Path) -> None:
    rewrite(recordings / "llm" / "cases.json", *keys)
    assert not all(row.good for row in compare.compare_folder(recordings / "llm")[1])
