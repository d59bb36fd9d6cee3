"""The chat format, held to recorded prompts: by vLLM's own rendering, and by transformers alone."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from golden_folders import DATA
from recorded_chats import body_of, ids_of, with_arguments_parsed
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm_server import VllmServer

from sidecar.engine.text import TextTokenizer
from step_audio_vllm import CHAT_TEMPLATE

CHECKPOINT = DATA / "llm" / "checkpoint"


def recorded() -> list[Any]:
    cases = json.loads((DATA / "ta4" / "render.json").read_text(encoding="utf-8"))["cases"]
    return [pytest.param(case, id=case["name"]) for case in cases]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(CHECKPOINT)


def render(tokenizer: PreTrainedTokenizerBase, messages: list[Any], **options: Any) -> str:
    template = CHAT_TEMPLATE.read_text(encoding="utf-8")
    text: str = tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False, **options)
    return text


def body_of_request(case: dict[str, Any], text: TextTokenizer) -> dict[str, Any]:
    return body_of(case, DATA / "llm" / "audio", text)


@pytest.fixture(scope="module")
def text() -> TextTokenizer:
    return TextTokenizer.from_folder(CHECKPOINT)


@pytest.mark.vllm
@pytest.mark.parametrize("case", recorded())
def test_vllm_without_flags_renders_the_recorded_ids(
    case: dict[str, Any], text: TextTokenizer, golden_server: VllmServer
) -> None:
    body = {"model": golden_server.model, **body_of_request(case, text)}
    answer = httpx.post(f"{golden_server.base_url}/tokenize", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    assert answer.json()["tokens"] == case["prompt_token_ids"]


@pytest.mark.parametrize("case", recorded())
def test_transformers_alone_renders_the_recorded_ids(
    case: dict[str, Any], text: TextTokenizer, tokenizer: PreTrainedTokenizerBase
) -> None:
    assert ids_of(body_of_request(case, text), tokenizer, text) == case["prompt_token_ids"]


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


def test_a_result_belongs_to_the_call_before_it_where_an_id_is_used_again(tokenizer: PreTrainedTokenizerBase) -> None:
    turns = []
    for name in ("look", "listen"):
        turns.append({"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": name, "arguments": {}}}]})
        turns.append({"role": "tool", "tool_call_id": "a", "content": "done"})
    text = render(tokenizer, turns)
    assert text.index("function_output\nlook\ndone") < text.index("function_output\nlisten\ndone")


@pytest.mark.parametrize(
    ("system", "head"),
    [([], "<|BOT|>system\n"), ([{"role": "system", "content": "S"}], "<|BOT|>system\nS<|EOT|>")],
)
def test_tools_stand_once_behind_the_opening_system_turn_without_the_nulls_that_vllm_adds(
    system: list[dict[str, str]], head: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    functions = [{"name": "look"}, {"name": "sing", "parameters": {"type": "object", "default": None}}]
    tools = [{"type": "function", "function": function} for function in functions]
    messages = [*system, {"role": "user", "content": "Hi"}, {"role": "system", "content": "Later"}]
    request = ChatCompletionRequest.model_validate({"model": "any", "messages": messages, "tools": tools})
    filled = [tool.model_dump() for tool in request.tools or []]
    assert filled != tools, "or this test shows nothing"
    text = render(tokenizer, messages, tools=filled)
    schemas = f"<|BOT|>tool_json_schemas\n{json.dumps(tools)}<|EOT|>"
    assert text == f"{head}{schemas}<|BOT|>human\nHi<|EOT|><|BOT|>system\nLater<|EOT|>"
