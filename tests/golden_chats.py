"""The recorded conversations that a chat request can express, asked of a server and answered in token ids."""

from __future__ import annotations

import json
from typing import Any

from golden_folders import DATA
from recorded_chats import body_of
from requests_with_audio import GREEDY, audio_item
from vllm_server import VllmServer

from sidecar.engine.text import TextTokenizer

CHECKPOINT = DATA / "llm" / "checkpoint"
AUDIO = DATA / "llm" / "audio"
TEXT = TextTokenizer.from_folder(CHECKPOINT)
_RECORDED = json.loads((DATA / "llm" / "cases.json").read_text(encoding="utf-8"))
SPECIAL_IDS: dict[str, int] = _RECORDED["special_token_ids"]
CASES: dict[str, dict[str, Any]] = {case["name"]: case for case in _RECORDED["cases"]}
#: Cases whose recorded ids a chat request leads to.
CHAT_CASES = [name for name, case in CASES.items() if "request" in case and not case["joined_tokenization_differs"]]


def recorded_request(name: str, **fields: Any) -> dict[str, Any]:
    """A recorded case as a greedy chat request for as many ids as were recorded."""
    case = CASES[name]
    body = body_of(case, AUDIO, TEXT)
    if "tools" in body:
        body["tool_choice"] = "none"  # they stay in the prompt, and a server without a parser for calls takes them
    return {**body, **GREEDY, "max_tokens": len(case["greedy"]["token_ids"]), **fields}


def recorded_ids(name: str) -> list[int]:
    ids: list[int] = CASES[name]["greedy"]["token_ids"]
    return ids


def about(*wavs: bytes, **fields: Any) -> dict[str, Any]:
    """A greedy chat request whose user says nothing but recordings."""
    content = [audio_item(wav) for wav in wavs]
    return {"messages": [{"role": "user", "content": content}], "max_tokens": 16, **GREEDY, **fields}


def answer(server: VllmServer, body: dict[str, Any]) -> tuple[list[int], list[int]]:
    """Prompt ids and generated ids."""
    response = server.chat(body)
    assert response.status_code == 200, response.text
    reply = response.json()
    return reply["prompt_token_ids"], reply["choices"][0]["token_ids"]
