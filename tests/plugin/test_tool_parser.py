"""The tool parser as vLLM itself drives it: registered, composed, fed by its own detokenizer, asked for the end."""

from __future__ import annotations

import json
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
from golden_folders import DATA, fullest
from hypothesis import given, settings
from hypothesis import strategies as st

import step_audio_vllm
from step_audio_vllm.siblings import REASONING_PARSER, TOOL_PARSER
from step_audio_vllm.vocabulary import Vocabulary

pytestmark = pytest.mark.vllm

CALL = '<tool_call>function\nget_weather\n{"city": "上海"}</tool_call>'
OTHER_CALL = '<tool_call>function\nget_time\n{"zone": 8}</tool_call>'
SPOKEN = "Wait<audio_1><audio_6560>, 请<audio_2><tts_pad><audio_6561><tts_end>"
TTS_PREFILL = {"role": "assistant", "content": "<tts_start>"}
CASES = json.loads((fullest("ta4") / "tool_calls.json").read_text(encoding="utf-8"))["cases"]


def tool(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}}


def chat_request(prefill: dict[str, Any] | None = None, names: tuple[str, ...] = ("get_weather", "get_time"), **fields: Any) -> Any:  # fmt: skip # noqa: E501
    """vLLM's own request: a question, tools, and an assistant message to go on with where one is given."""
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest  # noqa: PLC0415

    body: dict[str, Any] = {"model": "any", "messages": [{"role": "user", "content": "Hi"}], **fields}
    if names:
        body["tools"] = [tool(name) for name in names]
    if prefill is not None:
        body["messages"].append(prefill)
        body |= {"continue_final_message": True, "add_generation_prompt": False}
    return ChatCompletionRequest(**body)


@cache
def tokenizer() -> Any:
    from vllm.tokenizers import get_tokenizer  # noqa: PLC0415

    return get_tokenizer(str(DATA / "llm" / "checkpoint"))


@cache
def parser_class() -> Any:
    """What a server started with `--enable-auto-tool-choice --tool-call-parser step_audio_2` composes."""
    from vllm.parser import ParserManager  # noqa: PLC0415

    step_audio_vllm.register()
    return ParserManager.get_parser(tool_parser_name=TOOL_PARSER, enable_auto_tools=True)


def read_whole(text: str, request: Any) -> tuple[str | None, list[tuple[str, str]]]:
    parser = parser_class()(tokenizer(), request.tools)
    _, content, calls = parser.parse(text, request, enable_auto_tools=True)
    return content, [(call.name, call.arguments) for call in calls or []]


def read_streamed(deltas: list[tuple[str, list[int]]], request: Any) -> tuple[str, list[dict[str, str]]]:
    """Content and calls of [text, ids] per delta, joined the way clients do it."""
    parser = parser_class()(tokenizer(), request.tools)
    content, calls = "", list[dict[str, str]]()
    for number, (text, ids) in enumerate(deltas):
        prompt = [0] if number == 0 else None
        message = parser.parse_delta(text, ids, request, prompt, finished=number == len(deltas) - 1)
        sent = json.loads(message.model_dump_json(exclude_unset=True)) if message is not None else {}
        content += sent.get("content") or ""
        for piece in sent.get("tool_calls") or []:
            if "id" in piece:
                assert (piece["index"], piece["type"]) == (len(calls), "function")
                calls.append({"id": piece["id"], "name": piece["function"]["name"], "arguments": ""})
            else:
                assert not piece["function"].get("name")
            calls[piece["index"]]["arguments"] += piece["function"]["arguments"]
    return content, calls


def streamed(text: str, request: Any, cuts: list[int] | None = None) -> tuple[str, list[tuple[str, str]]]:
    """By characters, or cut where told; the last delta is empty, as where vLLM sees the end token."""
    borders = range(len(text) + 1) if cuts is None else [0, *sorted(cut for cut in cuts if cut < len(text)), len(text)]
    content, calls = read_streamed([*((text[a:b], [0]) for a, b in pairwise(borders)), ("", [0])], request)
    return content, [(call["name"], call["arguments"]) for call in calls]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_vllm_reads_the_recorded_texts_as_recorded(case: dict[str, Any]) -> None:
    # vLLM asks a parser only about requests with tools: where none were listed, the ones called are
    names = case["tool_names"] or ["get_weather", "get_time"]
    content, calls = case["expected"]["content"], case["expected"]["tool_calls"]
    request = chat_request(names=tuple(names))
    # of its own, vLLM leaves out content that is nothing but white space
    whole = (content if content and content.strip() else None, [(c["name"], c["arguments_json"]) for c in calls])
    assert read_whole(case["text"], request) == whole
    if case["streaming_must_agree"]:
        ours, pieces = streamed(case["text"], request)
        assert (ours or None) == content
        assert [(name, json.loads(arguments)) for name, arguments in pieces] == [
            (call["name"], call["arguments"]) for call in calls
        ]


@pytest.mark.parametrize("text", [f"{SPOKEN}{CALL}", f"{SPOKEN}{CALL}\n{OTHER_CALL} Bye"])
@pytest.mark.parametrize("opening", ["reply", "prefill", "prefill in parts"])
def test_calls_after_speech_are_found_and_no_speech_is_content(text: str, opening: str) -> None:
    parts = {
        "role": "assistant",
        "content": [{"type": "text", "text": "So. "}, {"type": "text", "text": "<tts_start>"}],
    }
    prefill = {"reply": None, "prefill": TTS_PREFILL, "prefill in parts": parts}[opening]
    request = chat_request(prefill)
    if opening == "reply":
        text = f"<tts_start>{text}"
    content, calls = streamed(text, request)
    assert content == (" Bye" if "Bye" in text else "")
    assert calls[0] == ("get_weather", '{"city": "上海"}')
    assert len(calls) == text.count("</tool_call>")
    assert read_whole(text, request) == (content or None, calls)


def test_speech_without_a_call_is_no_content_either() -> None:
    request = chat_request(TTS_PREFILL)
    assert read_whole(f"{SPOKEN}Written.", request) == ("Written.", [])
    assert streamed(f"{SPOKEN}Written.", request) == ("Written.", [])
    assert read_whole("said<audio_5> and cut off", request) == (None, [])
    # an assistant message that is over opens nothing
    assert streamed("Written.", chat_request(TTS_PREFILL | {"content": "<tts_start>Hi<tts_end>"})) == ("Written.", [])


def test_ids_of_calls_are_unique_and_several_calls_are_told_apart() -> None:
    request = chat_request()
    _, calls = read_streamed([(CALL + OTHER_CALL + CALL, [0]), ("", [0])], request)
    assert [call["name"] for call in calls] == ["get_weather", "get_time", "get_weather"]
    whole = parser_class()(tokenizer(), request.tools).tool_parser.extract_tool_calls(CALL + CALL, request)
    ids = [*(call["id"] for call in calls), *(call.id for call in whole.tool_calls)]
    assert len(ids) == len(set(ids)) == 5


def test_text_after_a_call_comes_with_the_end_whatever_ended_the_reply() -> None:
    assert read_streamed([(CALL, [0]), (" Bye <tool", [0])], chat_request())[0] == " Bye <tool"


def test_a_reply_that_ends_inside_a_call_is_no_error() -> None:
    begun = CALL.removesuffix('海"}</tool_call>')
    assert streamed(begun, chat_request()) == ("", [("get_weather", '{"city": "上')])
    assert read_whole(begun, chat_request()) == (begun, [])
    assert streamed("<tool_call>function\nget_w", chat_request()) == ("<tool_call>function\nget_w", [])


def test_where_calls_are_ruled_out_vllm_hands_on_the_text_untouched() -> None:
    for request in (chat_request(tool_choice="none"), chat_request(names=())):
        assert streamed(f"{SPOKEN}{CALL}", request) == (f"{SPOKEN}{CALL}", [])
        assert read_whole(f"{SPOKEN}{CALL}", request) == (f"{SPOKEN}{CALL}", [])


def test_a_call_that_vllm_forces_is_still_read_by_vllm() -> None:
    forced = '[{"name": "get_time", "parameters": {"zone": 8}}]'
    request = chat_request(tool_choice="required")
    assert read_whole(forced, request)[1] == [("get_time", '{"zone": 8}')]
    ((name, arguments),) = streamed(forced, request)[1]
    assert (name, json.loads(arguments)) == ("get_time", {"zone": 8})


@pytest.mark.parametrize(("fields", "kept"), [({}, True), ({"tool_choice": "none"}, False), ({"names": ()}, False)])
def test_the_tags_are_kept_in_the_text_where_calls_may_come(fields: dict[str, Any], kept: bool) -> None:
    request = chat_request(**fields)
    before = request.skip_special_tokens
    adjusted = parser_class()(tokenizer(), request.tools).adjust_request(request)
    assert adjusted.skip_special_tokens == (False if kept else before)
    assert before is not False


def test_tools_that_are_no_functions_are_no_error() -> None:
    from vllm.entrypoints.openai.responses.protocol import ResponsesRequest  # noqa: PLC0415

    tools = [{"type": "web_search_preview"}, {**tool("get_weather")["function"], "type": "function", "strict": False}]
    request = ResponsesRequest(model="any", input="Hi", tools=tools)
    assert read_whole(f"A {CALL}", request) == ("A ", [("get_weather", '{"city": "上海"}')])
    assert read_whole(OTHER_CALL, request) == (OTHER_CALL, [])


@pytest.mark.parametrize(
    "content", [None, "", [], [{"type": "text", "text": ""}], [{"type": "refusal", "refusal": "no"}]]
)
def test_any_last_message_can_be_gone_on_with(content: Any) -> None:
    assert read_whole("Written.", chat_request({"role": "assistant", "content": content})) == ("Written.", [])


def test_a_call_after_a_thought_and_speech_is_found_too() -> None:
    from vllm.parser import ParserManager  # noqa: PLC0415

    step_audio_vllm.register()
    both = ParserManager.get_parser(
        tool_parser_name=TOOL_PARSER, reasoning_parser_name=REASONING_PARSER, enable_auto_tools=True
    )
    told = {"chat_template_kwargs": {"enable_thinking": True}}
    request = chat_request(**told)
    text = f"So <a> think.</think>\n\n<tts_start>{SPOKEN}Written. {CALL}"
    thought, content, calls = both(tokenizer(), request.tools, **told).parse(text, request, enable_auto_tools=True)
    assert (thought, content, [call.name for call in calls]) == ("So <a> think.", "Written. ", ["get_weather"])
    parser = both(tokenizer(), request.tools, **told)
    prompt = tokenizer().encode("<|BOT|>assistant\n\n<think>\n", add_special_tokens=False)
    messages = [
        parser.parse_delta(part, tokenizer().encode(part, add_special_tokens=False), request, prompt, finished=not part)
        for part in [*text, ""]
    ]
    sent = [message for message in messages if message is not None]
    assert "".join(message.reasoning or "" for message in sent) == thought
    assert "".join(message.content or "" for message in sent) == content
    pieces = [piece.function for message in sent for piece in message.tool_calls]
    assert [piece.name for piece in pieces if piece.name] == ["get_weather"]
    assert "".join(piece.arguments for piece in pieces) == calls[0].arguments


def vllm_deltas(prompt_ids: list[int], reply_ids: list[int], sizes: list[int]) -> list[tuple[str, list[int]]]:
    """What vLLM's incremental detokenizer makes of a reply, the end token's delta included."""
    from vllm import SamplingParams  # noqa: PLC0415
    from vllm.v1.engine import EngineCoreRequest  # noqa: PLC0415
    from vllm.v1.engine.detokenizer import IncrementalDetokenizer  # noqa: PLC0415

    engine_request = EngineCoreRequest(
        request_id="one", prompt_token_ids=prompt_ids, mm_features=None, pooling_params=None, arrival_time=0.0,
        lora_request=None, cache_salt=None, data_parallel_rank=None,
        sampling_params=SamplingParams(skip_special_tokens=False),
    )  # fmt: skip
    detokenizer = IncrementalDetokenizer.from_new_request(tokenizer(), engine_request)
    deltas, at = [], 0
    for size in [*sizes, len(reply_ids)]:
        ids = reply_ids[at : at + size]
        at += len(ids)
        if ids:
            detokenizer.update(ids, stop_terminated=at == len(reply_ids))
            deltas.append((detokenizer.get_next_output_text(finished=at == len(reply_ids), delta=True), ids))
    return deltas


@pytest.mark.parametrize("sizes", [[1] * 400, [], [7, 1, 40], [3] * 200])
def test_from_real_tokens_in_any_portions_come_the_same_content_and_calls(sizes: list[int]) -> None:
    vocabulary = Vocabulary.from_ids(tokenizer().get_vocab())
    first, *others = tokenizer().encode("龘", add_special_tokens=False)
    assert others, "the character must be split over several tokens, or nothing is between its parts"
    written = tokenizer().encode(f"好 {CALL}{OTHER_CALL} 龘", add_special_tokens=False)
    speech = [vocabulary.first_speech_id + code for code in (5, 6, 7, 8)]
    reply = [first, *speech, *others, *speech, vocabulary.tts_pad, *speech, vocabulary.tts_end, *written]
    deltas = vllm_deltas([vocabulary.tts_start], [*reply, vocabulary.end_of_turn], sizes)
    content, calls = read_streamed(deltas, chat_request(TTS_PREFILL))
    assert content == "好  龘"
    assert [(call["name"], json.loads(call["arguments"])) for call in calls] == [
        ("get_weather", {"city": "上海"}), ("get_time", {"zone": 8}),
    ]  # fmt: skip


FRAGMENTS = [CALL, CALL[:30], CALL[30:], "<tool_call>", "</tool_call>", "nobody\n", "<", "<tts_start>", "<tts_end>",
             "<audio_7>", "<audio_", "<|BOT|>", " text", "龘", "\n", "{", "[" * 3000]  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(
    text=st.lists(st.sampled_from(FRAGMENTS), max_size=15).map("".join),
    cuts=st.lists(st.integers(0, 300)),
    prefilled=st.booleans(),
)
def test_nothing_that_a_model_writes_is_an_error_or_depends_on_its_cutting(
    text: str, cuts: list[int], prefilled: bool
) -> None:
    request = chat_request(TTS_PREFILL if prefilled else None)
    assert streamed(text, request, cuts) == streamed(text, request, [])
    content, calls = read_whole(text, request)
    for name in ("<audio_7>", "<tts_start>", "<tts_end>"):
        assert name not in (content or "")
    assert all(json.loads(arguments) == {"city": "上海"} for _, arguments in calls)
