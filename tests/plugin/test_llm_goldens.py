"""Prompt ids and greedy continuations of the reference, through vLLM with the plugin."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import compare_llm
import pytest
from comparison import Comparison
from golden_folders import DATA, fullest
from requests_with_audio import GREEDY, with_recordings
from vllm_server import VllmServer

pytestmark = pytest.mark.vllm


def chat_cases() -> list[Any]:
    """Recorded cases that a chat request can express: no spoken history, which has to go in as ids."""
    folder = fullest("llm")
    cases = json.loads((folder / "cases.json").read_text(encoding="utf-8"))["cases"]
    return [
        pytest.param(case, folder / "audio", id=case["name"])
        for case in cases
        if "request" in case and not any("tts_content" in message for message in case["request"]["messages"])
    ]


def test_the_recording_of_the_repository_has_the_cases_it_should() -> None:
    cases = json.loads((DATA / "llm" / "cases.json").read_text(encoding="utf-8"))["cases"]
    assert len(cases) == 15 and len(chat_cases()) >= 12


@pytest.mark.parametrize(("case", "audio"), chat_cases())
def test_a_chat_request_gives_the_recorded_prompt_and_continuation(
    case: dict[str, Any], audio: Path, golden_server: VllmServer
) -> None:
    steps = len(case["greedy"]["token_ids"])
    answer = golden_server.chat({**with_recordings(case["request"], audio), **GREEDY, "max_tokens": steps})
    assert answer.status_code == 200, answer.text
    body = answer.json()
    if case["joined_tokenization_differs"]:
        # a server tokenizes the rendered conversation in one go; the recorded continuation belongs to the other ids
        assert body["prompt_token_ids"] == case["prompt_token_ids_joined"]
        return
    assert body["prompt_token_ids"] == case["prompt_token_ids"]
    assert body["choices"][0]["token_ids"] == case["greedy"]["token_ids"]


def test_every_case_as_ids_gives_the_recorded_continuation_first_logits_and_embeddings() -> None:
    folder = fullest("llm")
    comparison = Comparison(folder)
    compare_llm.compare(comparison)
    rows = comparison.finish()
    assert [str(row) for row in rows if not row.good] == []
    assert sum("greedy ids" in row.name for row in rows) >= 15
