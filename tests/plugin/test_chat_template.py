"""The chat format, held to recorded prompts: by vLLM's own rendering, and by transformers alone."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from golden_folders import DATA
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from vllm_server import VllmServer

from step_audio_vllm import CHAT_TEMPLATE


def recorded() -> list[Any]:
    """Recorded requests without spoken history, which no template can write."""
    cases = json.loads((DATA / "ta4" / "render.json").read_text(encoding="utf-8"))["cases"]
    return [
        pytest.param(case, id=case["name"])
        for case in cases
        if not any("tts_content" in message for message in case["request"]["messages"])
    ]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(DATA / "llm" / "checkpoint")


def render(tokenizer: PreTrainedTokenizerBase, messages: list[Any], **options: Any) -> str:
    template = CHAT_TEMPLATE.read_text(encoding="utf-8")
    text: str = tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False, **options)
    return text


def with_arguments_parsed(messages: list[Any]) -> list[Any]:
    """Tool-call arguments as values, the way vLLM hands them to a template."""
    parsed = json.loads(json.dumps(messages))
    for message in parsed:
        for call in message.get("tool_calls") or []:
            call["function"]["arguments"] = json.loads(call["function"]["arguments"])
    return list(parsed)


@pytest.mark.vllm
@pytest.mark.parametrize("case", recorded())
def test_vllm_without_flags_renders_the_recorded_ids(case: dict[str, Any], golden_server: VllmServer) -> None:
    body = {"model": golden_server.model, **case["request"]}
    answer = httpx.post(f"{golden_server.base_url}/tokenize", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    assert answer.json()["tokens"] == case["prompt_token_ids"]


@pytest.mark.parametrize("case", recorded())
def test_transformers_alone_renders_the_recorded_ids_from_plain_strings(
    case: dict[str, Any], tokenizer: PreTrainedTokenizerBase
) -> None:
    request = case["request"]
    text = render(
        tokenizer,
        with_arguments_parsed(request["messages"]),
        tools=request.get("tools"),
        add_generation_prompt=request["add_generation_prompt"],
        continue_final_message=request["continue_final_message"],
    )
    assert tokenizer.encode(text) == case["prompt_token_ids"]


@pytest.mark.parametrize("case", recorded())
def test_a_list_of_one_text_reads_like_the_string(case: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> None:
    messages = with_arguments_parsed(case["request"]["messages"])
    as_lists = [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in messages]
    assert render(tokenizer, as_lists) == render(tokenizer, messages)


def test_recordings_and_texts_stand_side_by_side_in_the_order_given(tokenizer: PreTrainedTokenizerBase) -> None:
    parts = [{"type": "text", "text": "A"}, {"type": "audio"}, {"type": "input_audio"}, {"type": "text", "text": "B"}]
    text = render(tokenizer, [{"role": "user", "content": parts}])
    assert text == "<|BOT|>human\nA<audio_patch><audio_patch>B<|EOT|>"


@pytest.mark.parametrize("content", [None, "", []])
def test_an_assistant_turn_that_only_calls_a_tool_has_no_content(
    content: object, tokenizer: PreTrainedTokenizerBase
) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "look", "arguments": {"ort": "Köln"}}}
    text = render(tokenizer, [{"role": "assistant", "content": content, "tool_calls": [call, call]}])
    one = '<tool_call>function\nlook\n{"ort": "Köln"}</tool_call>'
    assert text == f"<|BOT|>assistant\n{one}{one}<|EOT|>"


def test_a_tool_result_carries_the_name_of_the_call_it_answers(tokenizer: PreTrainedTokenizerBase) -> None:
    calls = [{"id": i, "function": {"name": name, "arguments": "{}"}} for i, name in (("a", "look"), ("b", "listen"))]
    messages = [
        {"role": "assistant", "content": "", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "b", "content": "noise"},
        {"role": "tool", "tool_call_id": "unknown", "content": "what"},
    ]
    text = render(tokenizer, messages)
    assert "<|BOT|>function_output\nlisten\nnoise<|EOT|><|BOT|>function_output\ntool\nwhat<|EOT|>" in text
