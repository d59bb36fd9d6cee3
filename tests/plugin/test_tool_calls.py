"""Tool calls out of text: what counts, what stays text, and that the way a text arrives changes nothing."""

from __future__ import annotations

import json
import time
from itertools import pairwise

import pytest
from compare_ta4 import read_streamed
from hypothesis import given, settings
from hypothesis import strategies as st

from step_audio_vllm.tool_calls import ToolCall, ToolCallDelta, ToolCallReader, read_tool_calls

OFFERED = {"get_weather", "get_time"}
GOOD = '<tool_call>function\nget_weather\n{"city": "上海"}</tool_call>'

FRAGMENTS = [
    "<tool_call>", "</tool_call>", "<tool_", "</tool_ca", "ll>", "<", "</", "function\n", "get_weather\n", "nobody\n",
    '{"city": "上海"}', '{"x": ', "7", " ", "\n", "龘", "text", "\ud800",
]  # fmt: skip
TEXTS = st.lists(st.sampled_from(FRAGMENTS), max_size=25).map("".join)

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
#: Around a call that the model wrote well; a tag inside a JSON string would end the call.
BLANKS = st.text(" \n\t", max_size=3)
GOOD_CALLS = st.builds(
    lambda before, name, between, value, indent, after: (
        f"<tool_call>{before}function\n{name}\n{between}{json.dumps(value, indent=indent)}{after}</tool_call>"
    ),
    BLANKS, st.sampled_from(sorted(OFFERED)), BLANKS, VALUES, st.sampled_from([None, 1]), BLANKS,
).filter(lambda call: call.count("tool_call>") == 2)  # fmt: skip
GOOD_TEXTS = st.lists(GOOD_CALLS | st.sampled_from(["Hm", "<", " <tool", " ", "龘\n"]), max_size=6).map("".join)


def cut(text: str, cuts: list[int]) -> list[str]:
    borders = [0, *sorted(cut for cut in cuts if cut < len(text)), len(text)]
    return [text[start:end] for start, end in pairwise(borders)]


@settings(max_examples=500, deadline=None)
@given(text=TEXTS, cuts=st.lists(st.integers(0, 120)), offered=st.sampled_from([None, OFFERED, set()]))
def test_any_cutting_of_any_text_gives_the_same_content_and_calls(
    text: str, cuts: list[int], offered: set[str] | None
) -> None:
    in_one = read_streamed(ToolCallReader(offered), [text])
    assert read_streamed(ToolCallReader(offered), cut(text, cuts)) == in_one
    assert read_streamed(ToolCallReader(offered), text) == in_one


@settings(max_examples=300, deadline=None)
@given(text=GOOD_TEXTS, cuts=st.lists(st.integers(0, 200)))
def test_where_every_call_is_good_streamed_equals_whole(text: str, cuts: list[int]) -> None:
    content, calls = read_tool_calls(text, OFFERED)
    assert len(calls) == text.count("</tool_call>")
    streamed, pieces = read_streamed(ToolCallReader(OFFERED), cut(text, cuts))
    assert (streamed or None) == content
    assert [name for name, _ in pieces] == [call.name for call in calls]
    values = [json.loads(call.arguments) for call in calls]
    assert [json.loads(arguments) for _, arguments in pieces] == values


@settings(max_examples=300, deadline=None)
@given(text=TEXTS)
def test_without_a_good_call_a_whole_text_is_all_content(text: str) -> None:
    content, calls = read_tool_calls(text, {"never offered"})
    assert (content or "", calls) == (text, [])


@settings(max_examples=300, deadline=None)
@given(text=TEXTS, cuts=st.lists(st.integers(0, 120)))
def test_text_in_which_no_call_is_announced_loses_nothing(text: str, cuts: list[int]) -> None:
    assert read_streamed(ToolCallReader({"never offered"}), cut(text, cuts)) == (text, [])


def test_what_could_begin_a_tag_waits_and_the_rest_does_not() -> None:
    reader = ToolCallReader(OFFERED)
    assert [reader.feed(text)[0] for text in ("Hm <", "tool_", "x <tool_cal")] == ["Hm ", "", "<tool_x "]
    assert reader.finish() == ("<tool_cal", [])


def test_a_call_is_announced_once_and_its_arguments_stream_as_they_come() -> None:
    reader = ToolCallReader(OFFERED)
    heard = [reader.feed(text) for text in ("<tool_call>function\nget_wea", "ther\n", '{"ci', 'ty": "上', '海"} </tool_'
             , "call", ">", "<tool_call>function\nget_time\n{}</tool_call>")]  # fmt: skip
    assert [content for content, _ in heard] == [""] * len(heard)
    assert [pieces for _, pieces in heard] == [
        [], [],
        [ToolCallDelta(0, "get_weather", '{"ci')],
        [ToolCallDelta(0, None, 'ty": "上')],
        [ToolCallDelta(0, None, '海"}')],
        [], [],
        [ToolCallDelta(1, "get_time", "{}")],
    ]  # fmt: skip
    assert reader.finish() == ("", [])


@pytest.mark.parametrize(
    "bad",
    [
        "<tool_call>function\nnobody\n{}</tool_call>",
        "<tool_call>function\nget_weather</tool_call>",
        "<tool_call>function\nget_weather\n \n</tool_call>",
        "<tool_call>function\nget_weather\nwhere am I?</tool_call>",
        "<tool_call>get_weather\n{}</tool_call>",
        "<tool_call></tool_call>",
    ],
)
def test_a_call_that_is_wrong_before_its_arguments_is_text_and_the_next_is_read(bad: str) -> None:
    content, calls = read_streamed(ToolCallReader(OFFERED), f"A {bad} B {GOOD}")
    assert (content, calls) == (f"A {bad} B ", [["get_weather", '{"city": "上海"}']])
    assert read_tool_calls(bad, OFFERED) == (bad, [])
    # after a good one it belongs to nobody, streamed as whole
    assert read_streamed(ToolCallReader(OFFERED), f"A {GOOD} B {bad} C") == ("A  C", calls)
    assert read_tool_calls(f"A {GOOD} B {bad} C", OFFERED) == ("A  C", [ToolCall("get_weather", '{"city": "上海"}')])


def test_an_unknown_name_comes_out_as_text_before_its_arguments_end() -> None:
    reader = ToolCallReader(OFFERED)
    assert reader.feed('<tool_call>function\nnobody\n{"a": ') == ('<tool_call>function\nnobody\n{"a": ', [])


@pytest.mark.parametrize(
    ("arguments", "streamed"),
    [
        ('{"x": ', '{"x":'),
        ('{"x": 1} }', '{"x": 1} }'),
        ("NaN", None),
        ("1e999", "1e999"),
        ("true false", "true false"),
    ],
)
def test_arguments_that_break_are_text_when_whole_and_stay_announced_when_streamed(
    arguments: str, streamed: str | None
) -> None:
    text = f"<tool_call>function\nget_weather\n{arguments}</tool_call> after"
    assert read_tool_calls(text, OFFERED) == (text, [])
    expected = (text, []) if streamed is None else (" after", [["get_weather", streamed]])
    assert read_streamed(ToolCallReader(OFFERED), text) == expected


@pytest.mark.parametrize("end", range(len("Hm ") + len(GOOD)))
def test_a_call_cut_off_anywhere_is_no_error_and_nothing_is_lost(end: int) -> None:
    text = f"Hm {GOOD}"[:end]
    assert read_tool_calls(text, OFFERED) == (text or None, [])
    content, calls = read_streamed(ToolCallReader(OFFERED), text)
    if calls:
        name, arguments = calls[0]
        assert (content, f"<tool_call>function\n{name}\n{arguments}") == ("Hm ", text.removeprefix("Hm ").rstrip())
    else:
        assert content == text


def test_a_call_cut_off_after_a_good_one_leaves_the_text_between() -> None:
    assert read_tool_calls(f"{GOOD} B <tool_call>function\nget_t", OFFERED)[0] == " B "
    assert read_streamed(ToolCallReader(OFFERED), f"{GOOD} B <tool_call>function\nget_t")[0] == " B "


def test_arguments_are_written_again_with_letters_as_letters_and_can_always_be_sent() -> None:
    body = r"function" + "\n" + "f" + "\n" + r'{"a":"\u4e0a\ud83d\ude00", "half": "\udc00", "b":[1,2.50]}'
    ((call,)) = read_tool_calls(f"<tool_call>{body}</tool_call>", None)[1]
    assert call.arguments == '{"a": "上😀", "half": "\\udc00", "b": [1, 2.5]}'
    call.arguments.encode()


@pytest.mark.parametrize("arguments", ["[" * 200_000, "[" * 200_000 + "]" * 200_000, "9" * 10_000])
def test_arguments_that_python_cannot_hold_are_text_and_quickly_so(arguments: str) -> None:
    text = f"<tool_call>function\nf\n{arguments}</tool_call>"
    assert read_tool_calls(text, None) == (text, [])
    assert read_streamed(ToolCallReader(None), [text]) == ("", [["f", arguments]])


def test_a_long_text_by_characters_takes_time_in_proportion() -> None:
    def seconds(text: str) -> float:
        started = time.process_time()
        read_streamed(ToolCallReader(None), text)
        return time.process_time() - started

    call = "<tool_call>function\nf\n" + json.dumps(["x"] * 2000) + "</tool_call>"
    assert seconds(call * 8) < 40 * max(seconds(call), 0.005)
