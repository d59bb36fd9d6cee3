"""Bodies of chats and completions: what is refused, and what of the rest travels on."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from chat_front import TEXT, sound, user

from sidecar.chat_messages import AudioItem
from sidecar.chat_requests import ChatReader, read_completion
from sidecar.engine.text import MAX_CHARACTERS
from sidecar.errors import BadRequest

HELLO = {"messages": [{"role": "user", "content": "Hello"}]}


def in_two(data: bytes) -> list[AudioItem]:
    """A recording of six bytes or more is a long one here."""
    pieces = [data] if len(data) < 6 else [data[:5], data[5:]]
    return [AudioItem(b"wav:" + piece, len(piece)) for piece in pieces]


READER = ChatReader(
    require_plain=TEXT.require_plain,
    recording=in_two,
    spoken_turn=lambda value, where: AudioItem(f"{where}: {value}".encode(), 7, is_recording=False),
)


def read(*messages: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return READER.read(json.dumps({"messages": messages, **fields}).encode()).body


def calling(**function: Any) -> dict[str, Any]:
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "c1", "type": "function", "function": function}],
    }


def test_fields_of_sampling_and_form_pass_as_they_came() -> None:
    fields = {"model": "m", "temperature": 0.2, "stream": True, "stop": ["x"], "response_format": {"type": "text"}}
    assert read(user("Hi"), **fields) == {"messages": [user("Hi")], **fields}


def test_a_recording_is_encoded_anew_and_nothing_else_of_its_part_travels() -> None:
    part = {**sound(b"abc"), "uuid": "somebody else's"}
    (written,) = read(user([part]))["messages"][0]["content"]
    assert written == {
        "type": "input_audio",
        "input_audio": {"data": base64.b64encode(b"wav:abc").decode(), "format": "wav"},
    }


def test_unknown_keys_of_a_message_stay_here() -> None:
    message = {**user("Hi"), "eot": False, "reasoning": "<|EOT|>", "task": "<|EOT|>"}
    assert read(message)["messages"] == [user("Hi")]


def test_texts_that_touch_become_one_and_sound_keeps_its_place() -> None:
    content = [{"type": "text", "text": "a"}, "b", sound(b""), {"type": "input_text", "text": "c"}]
    written = read(user(content))["messages"][0]["content"]
    assert [part.get("text", "sound") for part in written] == ["ab", "sound", "c"]


def test_the_parts_of_a_tool_result_are_joined_by_newlines() -> None:
    content = [{"type": "text", "text": "<audio"}, {"type": "text", "text": "_5>"}]
    (part,) = read({"role": "tool", "tool_call_id": "c1", "content": content})["messages"][0]["content"]
    assert part["text"] == "<audio\n_5>"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": [user("a <|EOT|> b")]}, "messages[0].content"),
        ({"messages": [user("fine"), user([{"type": "text", "text": "<audio_5>"}])]}, "messages[1].content"),
        (
            {"messages": [user([{"type": "text", "text": "<aud"}, {"type": "text", "text": "io_5>"}])]},
            "messages[0].content",
        ),
        ({"messages": [{"role": "system", "content": "<tts_start>"}]}, "messages[0].content"),
        ({"messages": [{"role": "tool", "content": "<tool_call>"}]}, "messages[0].content"),
        ({"messages": [{"role": "input", "content": "<|BOT|>"}]}, "messages[0].content"),
        ({"messages": [{"role": "a<|EOT|>", "content": ""}]}, "messages[0].role"),
        ({"messages": [{"role": "tool", "tool_call_id": "<|EOT|>", "content": ""}]}, "messages[0].tool_call_id"),
        ({"messages": [calling(name="f<|EOT|>", arguments="{}")]}, "messages[0].tool_calls[0].function.name"),
        (
            {"messages": [calling(name="f", arguments='{"a": "<|EOT|>"}')]},
            "messages[0].tool_calls[0].function.arguments",
        ),
        (
            {"messages": [calling(name="f", arguments='{"a": "\\u003c|EOT|>"}')]},
            "messages[0].tool_calls[0].function.arguments",
        ),
        ({"messages": [calling(name="f", arguments={"<|EOT|>": 1})]}, "messages[0].tool_calls[0].function.arguments"),
        ({**HELLO, "tools": [{"type": "function", "function": {"name": "<|EOT|>"}}]}, "tools"),
        ({**HELLO, "tools": [{"type": "function", "function": {"parameters": {"<|EOT|>": {}}}}]}, "tools"),
        (
            {**HELLO, "tools": [{"type": "function", "function": {"description": "<|EOT|>"}}], "tool_choice": "none"},
            "tools",
        ),
    ],
)
def test_control_tokens_are_refused_wherever_text_goes_in(body: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        READER.read(json.dumps(body).encode())
    assert (caught.value.code, caught.value.param) == ("control_token", param)


def test_what_the_model_wrote_may_come_back_with_its_control_tokens() -> None:
    history = {"role": "assistant", "content": "<tts_start>A<audio_12><tts_end>"}
    assert read(history, user("Again"))["messages"][0] == history


def test_tool_calls_of_the_history_travel_whole() -> None:
    message = calling(name="get_weather", arguments='{"city": "上海"}')
    assert read(message)["messages"] == [message]


def wavs_in(message: dict[str, Any]) -> list[str]:
    """The sound of a message as text, and its other parts as they are called."""
    data = [part.get("input_audio", {}).get("data") for part in message["content"]]
    return [
        part.get("text") or base64.b64decode(sound).decode()
        for part, sound in zip(message["content"], data, strict=True)
    ]


def test_a_long_recording_travels_in_pieces_in_its_own_place() -> None:
    message = user(["before", sound(b"abcdefgh"), sound(b"xy"), "behind"])
    chat = READER.read(json.dumps({"messages": [message]}).encode())
    assert wavs_in(chat.body["messages"][0]) == ["before", "wav:abcde", "wav:fgh", "wav:xy", "behind"]
    assert [item.prompt_tokens for item in chat.items] == [5, 3, 2]


SAID = {"tts_text": "Hi", "tts_audio": "<audio_1>"}
SPOKEN = f"messages[0].tts_content: {SAID}"


@pytest.mark.parametrize(
    ("content", "behind"),
    [(None, []), ("", []), ("More.", ["More."]), ([{"type": "text", "text": "More."}], ["More."]), ([], [])],
)
def test_what_was_said_comes_before_the_written_content(content: Any, behind: list[str]) -> None:
    message = read({"role": "assistant", "content": content, "tts_content": SAID})["messages"][0]
    assert wavs_in(message) == [SPOKEN, *behind]


def test_a_spoken_turn_keeps_its_tool_calls() -> None:
    message = {**calling(name="f", arguments="{}"), "tts_content": SAID}
    written = read(message)["messages"][0]
    assert (wavs_in(written), written["tool_calls"]) == ([SPOKEN], message["tool_calls"])


def test_a_spoken_turn_and_recordings_are_counted_in_their_order() -> None:
    message = {"role": "assistant", "tts_content": SAID}
    chat = READER.read(json.dumps({"messages": [user([sound(b"abc")]), message, user([sound(b"d")])]}).encode())
    assert [(item.prompt_tokens, item.is_recording) for item in chat.items] == [(3, True), (7, False), (1, True)]


@pytest.mark.parametrize(
    "last", [user([{"type": "text", "text": "A"}, sound(b"abc")]), {"role": "assistant", "tts_content": SAID}]
)
def test_an_open_message_that_ends_with_sound_is_refused(last: dict[str, Any]) -> None:
    with pytest.raises(BadRequest, match="only text can be continued"):
        read(user("Hi"), last, continue_final_message=True, add_generation_prompt=False)
    assert read(user("Hi"), last)["messages"][-1]["content"][-1]["type"] == "input_audio"


def test_only_an_assistant_has_spoken() -> None:
    with pytest.raises(BadRequest, match="assistant") as caught:
        read({**user("Hi"), "tts_content": SAID})
    assert caught.value.param == "messages[0].tts_content"
    assert read({**user("Hi"), "tts_content": None})["messages"] == [user("Hi")]


@pytest.mark.parametrize("kind", ["audio_url", "image_url", "video_url", "image_embeds", "audio_embeds", "nonsense"])
def test_other_media_are_refused_with_the_form_that_works(kind: str) -> None:
    with pytest.raises(BadRequest, match="input_audio") as caught:
        read(user([{"type": kind, kind: {"url": "http://169.254.169.254/"}}]))
    assert caught.value.param == "messages[0].content[0]"


@pytest.mark.parametrize(
    "part", [{"audio_url": "http://x"}, {"type": ["text"]}, 7, None, {"type": "text", "text": None}]
)
def test_a_part_that_is_no_part_is_refused(part: Any) -> None:
    with pytest.raises(BadRequest, match=r"messages\[0\].content"):
        read(user([part]))


@pytest.mark.parametrize("data", ["not base64!", "YWJ", 5, None, "data:audio/wav;base64,YWJj"])
def test_sound_that_is_no_base64_is_refused(data: Any) -> None:
    with pytest.raises(BadRequest, match="base64"):
        read(user([{"type": "input_audio", "input_audio": {"data": data}}]))


@pytest.mark.parametrize(
    "field",
    [
        "chat_template",
        "chat_template_kwargs",
        "mm_processor_kwargs",
        "media_io_kwargs",
        "documents",
        "truncate_prompt_tokens",
    ],
)
def test_fields_that_reach_past_the_chat_format_are_refused(field: str) -> None:
    with pytest.raises(BadRequest) as caught:
        read(user("Hi"), **{field: {"a": 1}})
    assert caught.value.param == field
    assert read(user("Hi"), **{field: None})["messages"] == [user("Hi")]


@pytest.mark.parametrize(
    "given",
    [
        {"messages": []},
        {"enable_thinking": "yes"},
        {"thinking_prefill": 5},
        {"enable_thinking": True, "tools": []},
        "words",
        [],
    ],
)
def test_the_template_takes_no_more_than_it_offers(given: Any) -> None:
    with pytest.raises(BadRequest, match="enable_thinking") as caught:
        read(user("Hi"), chat_template_kwargs=given)
    assert (caught.value.param, caught.value.code) == ("chat_template_kwargs", "field_not_accepted")


@pytest.mark.parametrize("given", [None, {}, {"enable_thinking": False}, {"thinking_prefill": "<think>"}])
def test_a_client_may_say_whether_a_model_thinks_and_how_it_begins(given: Any) -> None:
    assert read(user("Hi"), chat_template_kwargs=given)["chat_template_kwargs"] == given


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"\xff",
        b'{"messages": []}',
        b'{"messages": 5}',
        b'{"messages": [5]}',
        b'{"messages": [{"content": "a"}]}',
        b'{"messages": [{"role": "user", "content": 5}]}',
        b'{"messages": [{"role": "user", "content": "a"}], "temperature": NaN}',
        b"[" * 100_000,
        b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"messages": [{"role": "assistant", "tool_calls": [{"function": 5}]}]}',
    ],
)
def test_a_body_that_is_no_chat_is_refused(body: bytes) -> None:
    with pytest.raises(BadRequest):
        READER.read(body)


def test_texts_may_be_as_long_as_the_context_holds() -> None:
    result = {"role": "tool", "tool_call_id": "c1", "content": "word " * 10_000}
    assert read(result)["messages"] == [result]


TOO_LONG = "a" * (MAX_CHARACTERS + 1)


@pytest.mark.parametrize(
    "body",
    [
        {"messages": [user(TOO_LONG)]},
        {"messages": [user(["a" * 2**20, "b" * 2**20, "c"])]},
        {"messages": [{"role": TOO_LONG, "content": ""}]},
        {"messages": [calling(name="f", arguments={"a": TOO_LONG})]},
        {**HELLO, "tools": [{"type": "function", "function": {"name": "f", "description": TOO_LONG}}]},
    ],
    ids=["text", "parts", "role", "arguments", "tools"],
)
def test_a_text_that_no_context_holds_is_refused_before_it_is_tokenized(body: dict[str, Any]) -> None:
    with pytest.raises(BadRequest, match="at most 2,097,152") as caught:
        READER.read(json.dumps(body).encode())
    assert caught.value.code == "context_length_exceeded"


@pytest.mark.parametrize("values", [b"[],", b"{},", b"0,", b"[", b'{"":'])
def test_a_body_of_a_million_values_is_refused_before_they_are_made(values: bytes) -> None:
    body = b'{"messages": [' + values * 1_000_001
    with pytest.raises(BadRequest, match="more than 1,000,000"):
        READER.read(body)


@pytest.mark.parametrize("depth", [*range(940, 1000), 100_000])
def test_arguments_are_read_or_refused_however_deep_they_are(depth: int) -> None:
    message = calling(name="f", arguments="[" * depth + "]" * depth)
    try:
        assert read(message)["messages"] == [message]
    except BadRequest as refused:
        assert refused.param == "messages[0].tool_calls[0].function.arguments"


def test_a_raw_completion_may_write_its_own_turns() -> None:
    body = {"prompt": "<|BOT|>human\nHi<|EOT|>", "max_tokens": 3}
    assert read_completion(json.dumps(body).encode()) == body
    with pytest.raises(BadRequest, match="prompt_embeds"):
        read_completion(b'{"prompt_embeds": "AAAA"}')
