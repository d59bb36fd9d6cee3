"""Tool calls from a real vLLM server. Its random model would never write one, so a grammar leaves it no other text."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from golden_folders import DATA
from vllm_server import VllmServer, serving

pytestmark = pytest.mark.vllm

CALLS = (
    '<tool_call>function\nget_weather\n{"city": "上海"}</tool_call>'
    '<tool_call>function\nget_time\n{"zone": 8}</tool_call>'
)
EXPECTED = [("get_weather", {"city": "上海"}), ("get_time", {"zone": 8})]
SPOKEN = "请<audio_1><audio_22><audio_333><audio_6560>.<tts_pad><audio_6561><tts_end>"
PREFILL = {
    "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "<tts_start>"}],
    "continue_final_message": True,
    "add_generation_prompt": False,
}


@pytest.fixture(scope="module")
def server() -> Iterator[VllmServer]:
    with serving(
        DATA / "llm" / "checkpoint", "--enable-auto-tool-choice", "--tool-call-parser", "step_audio_2"
    ) as running:
        yield running


def writing(text: str, **fields: Any) -> dict[str, Any]:
    """A request with two tools whose reply can only be this text."""
    tools = [
        {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}}
        for name in ("get_weather", "get_time")
    ]
    return {
        "messages": [{"role": "user", "content": "Hi"}],
        "tools": tools,
        # a grammar and not a choice, in which 0.26 allows no newline
        "structured_outputs": {"grammar": f"root ::= {json.dumps(text, ensure_ascii=False)}"},
        "temperature": 0,
        "max_tokens": 400,
        **fields,
    }


def streamed(server: VllmServer, body: dict[str, Any]) -> tuple[str, list[dict[str, str]], list[str]]:
    """Content, calls, and the kinds of the deltas in the order in which they came, the finish reason last."""
    content, calls, kinds = "", list[dict[str, str]](), list[str]()
    url = f"{server.base_url}/v1/chat/completions"
    with httpx.stream("POST", url, json={"model": server.model, **body, "stream": True}, timeout=120) as answer:
        for line in answer.iter_lines():
            if not line.startswith("data: {"):
                continue
            choice = json.loads(line.removeprefix("data: "))["choices"][0]
            content += choice["delta"].get("content") or ""
            for piece in choice["delta"].get("tool_calls") or []:
                if "id" in piece:
                    calls.append({"id": piece["id"], "name": piece["function"]["name"], "arguments": ""})
                calls[piece["index"]]["arguments"] += piece["function"]["arguments"]
                kinds.append(f"call {piece['index']}")
            if choice["finish_reason"]:
                kinds.append(choice["finish_reason"])
    return content, calls, kinds


@pytest.mark.parametrize(
    ("text", "fields", "content"),
    [
        (f"OK. {CALLS} Bye.", {}, "OK.  Bye."),
        (f"{SPOKEN}{CALLS}", PREFILL, ""),
        (f"<tts_start>{SPOKEN}{CALLS}", {}, ""),
    ],
    ids=["text", "after speech", "after speech that the reply opened"],
)
def test_calls_come_whole_and_streamed(text: str, fields: dict[str, Any], content: str, server: VllmServer) -> None:
    body = writing(text, **fields)
    choice = server.chat(body).json()["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    message = choice["message"]
    assert (message["content"] or "") == content
    functions = [call["function"] for call in message["tool_calls"]]
    assert [(function["name"], json.loads(function["arguments"])) for function in functions] == EXPECTED
    heard, calls, kinds = streamed(server, body)
    assert heard == content
    assert [(call["name"], json.loads(call["arguments"])) for call in calls] == EXPECTED
    assert len({call["id"] for call in [*message["tool_calls"], *calls]}) == 4
    assert kinds[-1] == "tool_calls"
    # the arguments came in pieces, as they were written
    assert kinds.count("call 0") > 2 < kinds.count("call 1")


def test_a_call_of_something_never_offered_is_text(server: VllmServer) -> None:
    text = "<tool_call>function\nlaunch\n{}</tool_call>"
    choice = server.chat(writing(text)).json()["choices"][0]
    assert (choice["finish_reason"], choice["message"]["content"]) == ("stop", text)
    assert not choice["message"].get("tool_calls")
    assert streamed(server, writing(text)) == (text, [], ["stop"])


def test_a_call_cut_off_by_the_limit_is_no_error(server: VllmServer) -> None:
    whole = server.chat(writing(CALLS, return_token_ids=True)).json()["choices"][0]["token_ids"]
    for limit in range(1, len(whole), 9):
        body = writing(CALLS, max_tokens=limit)
        answer = server.chat(body)
        assert answer.status_code == 200, answer.text
        content, calls, kinds = streamed(server, body)
        written = content + "".join(call["arguments"] for call in calls)
        assert kinds[-1] in ("length", "tool_calls") and written
