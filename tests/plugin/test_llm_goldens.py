"""Prompt ids and greedy continuations of the reference, through vLLM with the plugin."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import compare_llm
import pytest
from comparison import Comparison
from golden_folders import DATA, fullest
from recorded_chats import body_of
from requests_with_audio import GREEDY
from vllm_server import VllmServer

from sidecar.engine.text import TextTokenizer

pytestmark = pytest.mark.vllm


def chat_cases() -> list[Any]:
    """Recorded cases that a chat request can express; the one without turns needs the other template."""
    folder = fullest("llm")
    cases = json.loads((folder / "cases.json").read_text(encoding="utf-8"))["cases"]
    return [pytest.param(case, folder / "audio", id=case["name"]) for case in cases if "request" in case]


def test_the_recording_of_the_repository_has_the_cases_it_should() -> None:
    cases = json.loads((DATA / "llm" / "cases.json").read_text(encoding="utf-8"))["cases"]
    assert len(cases) == 15 and len(chat_cases()) >= 14


@pytest.mark.parametrize(("case", "audio"), chat_cases())
def test_a_chat_request_gives_the_recorded_prompt_and_continuation(
    case: dict[str, Any], audio: Path, golden_server: VllmServer
) -> None:
    body = body_of(case, audio, TextTokenizer.from_folder(DATA / "llm" / "checkpoint"))
    if "tools" in body:
        body["tool_choice"] = "none"  # they stay in the prompt; this server was given no parser for calls
    steps = len(case["greedy"]["token_ids"])
    answer = golden_server.chat({**body, **GREEDY, "max_tokens": steps})
    assert answer.status_code == 200, answer.text
    reply = answer.json()
    if case["joined_tokenization_differs"] and reply["prompt_token_ids"] == case["prompt_token_ids_joined"]:
        # a server may tokenize the rendered conversation in one go; the recorded continuation belongs to the other ids
        return
    assert reply["prompt_token_ids"] == case["prompt_token_ids"]
    assert reply["choices"][0]["token_ids"] == case["greedy"]["token_ids"]


def test_every_case_as_ids_gives_the_recorded_continuation_first_logits_and_embeddings() -> None:
    folder = fullest("llm")
    comparison = Comparison(folder)
    compare_llm.compare(comparison)
    rows = comparison.finish()
    assert [str(row) for row in rows if not row.good] == []
    assert sum("greedy ids" in row.name for row in rows) >= 15
    assert sum("prompt ids of the request" in row.name for row in rows) >= 15
