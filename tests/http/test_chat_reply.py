"""Chats that are answered in speech: what the engine is asked, and what its ids become."""

from __future__ import annotations

import itertools
import json
from typing import Any

import httpx
import pytest
from chat_front import CHAT, TEXT, answering, front, front_of, ids_in_item, user
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.responses import JSONResponse, Response
from stub_engine import DONE, RawAnswer, event, stub_engine
from vllm_server import VllmServer

from sidecar.chat_reply import StreamedReply, WholeReply
from sidecar.engine.interleave import interleave
from sidecar.engine.speech_chat import opens_speech, speech_chat
from sidecar.engine.spoken_turns import SpokenTurns, speech_section
from sidecar.engine.tts_content import codes_of
from sidecar.errors import BadRequest

WORDS = TEXT.vocabulary
OPEN = {"role": "assistant", "content": "<tts_start>"}
IN_SPEECH = {"messages": [user("Hi"), OPEN], "continue_final_message": True, "add_generation_prompt": False}
TOOLS = [{"type": "function", "function": {"name": name}} for name in ("weather", "time")]
WEATHER = '<tool_call>function\nweather\n{"city": "上海"}</tool_call>'
TIME = "<tool_call>function\ntime\n{}</tool_call>"
USAGE = {"prompt_tokens": 3, "completion_tokens": 9, "total_tokens": 12}


def spoken(text: str, codes: list[int], behind: str = "") -> list[int]:
    """A reply: a token of text and two of speech by turns, then what is written behind."""
    ids: list[int] = []
    speech = [WORDS.first_speech_id + code for code in codes]
    for index, token in enumerate(TEXT.encode(text)):
        ids += [token, *speech[2 * index : 2 * index + 2]]
    ids += [WORDS.tts_pad, *speech[2 * len(TEXT.encode(text)) :], WORDS.first_speech_id + 6561, WORDS.tts_end]
    return [*ids, *TEXT.encode(behind), WORDS.end_of_turn]


def text_of_engine(ids: list[int]) -> str:
    return b"".join(map(TEXT.token_bytes, ids)).decode(errors="replace")


def answered(*replies: list[int], reason: str = "stop") -> dict[str, Any]:
    """A chat answer as vLLM writes it with the ids asked for."""
    choices = [
        {
            "index": index,
            "message": {"role": "assistant", "content": text_of_engine(ids), "tool_calls": [], "reasoning": None},
            "logprobs": None,
            "finish_reason": reason,
            "stop_reason": None,
            "token_ids": ids,
        }
        for index, ids in enumerate(replies)
    ]
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "choices": choices,
        "usage": USAGE,
        "prompt_token_ids": [1, 2, 3],
    }


def delta(index: int, ids: list[int], reason: str | None = None) -> bytes:
    choice = {"index": index, "delta": {"content": text_of_engine(ids)}, "logprobs": None, "finish_reason": reason}
    return event({"id": "chatcmpl-1", "choices": [{**choice, "token_ids": ids}]})


def beginning(index: int) -> bytes:
    choice = {"index": index, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
    return event({"id": "chatcmpl-1", "choices": [choice], "prompt_token_ids": [1, 2, 3]})


def streaming(ids: list[int], *cuts: int, index: int = 0, reason: str = "stop") -> list[bytes]:
    edges = [0, *cuts, len(ids)]
    parts = [ids[start:end] for start, end in itertools.pairwise(edges)]
    last = len(parts) - 1
    deltas = [delta(index, part, reason if number == last else None) for number, part in enumerate(parts)]
    return [beginning(index), *deltas]


def whole(answer: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return WholeReply(speech_chat({**IN_SPEECH, **fields}), TEXT, SpokenTurns()).read(json.dumps(answer).encode())


def stream(pieces: list[bytes], **fields: Any) -> list[dict[str, Any]]:
    reply = StreamedReply(speech_chat({**IN_SPEECH, "stream": True, **fields}), TEXT, SpokenTurns())
    written = b"".join(map(reply.feed, pieces)) + reply.finish()
    lines = [line for line in written.decode().split("\n\n") if line]
    return [json.loads(line.removeprefix("data: ")) for line in lines if line != "data: [DONE]"]


def joined(events: list[dict[str, Any]], index: int = 0) -> dict[str, Any]:
    """What a client makes of the deltas of a choice."""
    message: dict[str, Any] = {"content": "", "tts_text": "", "tts_audio": "", "calls": {}, "finish_reason": None}
    for choice in (choice for written in events for choice in written["choices"] if choice["index"] == index):
        message["content"] += choice["delta"].get("content") or ""
        for key, text in choice["delta"].get("tts_content", {}).items():
            message[key] += text
        for piece in choice["delta"].get("tool_calls", []):
            call = message["calls"].setdefault(piece["index"], {"arguments": ""})
            call |= {"id": piece["id"], "name": piece["function"]["name"]} if "id" in piece else {}
            call["arguments"] += piece["function"]["arguments"]
        message["finish_reason"] = choice["finish_reason"] or message["finish_reason"]
    return message


# what the engine is asked


@pytest.mark.parametrize(
    "last",
    [
        "<tts_start>",
        [{"type": "text", "text": "<tts_start>"}],
        "\n<think>\nHm.\n</think>\n\n<tts_start>",
        [{"type": "text", "text": "Hm.</think>"}, {"type": "text", "text": "\n\n<tts_start>"}],
    ],
)
def test_an_open_turn_that_begins_to_speak_is_answered_in_speech(last: Any) -> None:
    chat = {**IN_SPEECH, "messages": [user("Hi"), {"role": "assistant", "content": last}], "model": "m", "top_p": 0.5}
    with front_of(lambda: JSONResponse(answered(spoken("Hello", [1])))) as (url, engine):
        answer = httpx.post(url + CHAT, json=chat)
    assert answer.json()["choices"][0]["message"]["tts_content"] == {"tts_text": "Hello", "tts_audio": "<audio_1>"}
    asked = json.loads(engine.seen[0][2])
    assert (asked["return_token_ids"], asked["skip_special_tokens"], asked["top_p"]) == (True, False, 0.5)
    assert "tool_choice" not in asked


@pytest.mark.parametrize(
    "changed",
    [
        {"continue_final_message": False, "add_generation_prompt": True},
        {"messages": [user("Hi"), {"role": "assistant", "content": "<tts_start>Hel"}]},
        {"messages": [user("Hi"), {"role": "assistant", "content": ""}]},
        {"messages": [user("Hi"), {"role": "assistant"}]},
        {"messages": [user("Hi"), {"role": "assistant", "content": []}]},
        {"add_generation_prompt": None},
    ],
)
def test_any_other_chat_is_passed_on_and_answered_byte_by_byte(changed: dict[str, Any]) -> None:
    chat = {**IN_SPEECH, **changed, "logprobs": True, "stop": ["x"]}
    answer = json.dumps(answered(spoken("Hello", [1]))).encode() + b" "
    with front_of(lambda: Response(answer, media_type="application/json")) as (url, engine):
        assert httpx.post(url + CHAT, json=chat).content == answer
    messages = [{"role": message["role"], "content": message.get("content")} for message in chat["messages"]]
    assert json.loads(engine.seen[0][2]) == {**chat, "messages": messages}


def test_tools_stay_in_the_prompt_and_their_calls_are_read_here() -> None:
    asked = speech_chat({**IN_SPEECH, "tools": TOOLS, "tool_choice": "auto"})
    assert asked.body["tools"] == TOOLS
    assert asked.body["tool_choice"] == "none"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("logprobs", True),
        ("top_logprobs", 3),
        ("prompt_logprobs", 1),
        ("echo", True),
        ("stop", "x"),
        ("stop", ["x"]),
        ("structured_outputs", {"json": {}}),
        ("use_beam_search", True),
        ("response_format", {"type": "json_object"}),
        ("response_format", {"type": "json_schema", "json_schema": {}}),
        ("tool_choice", "required"),
        ("tool_choice", {"type": "function", "function": {"name": "weather"}}),
    ],
)
def test_what_a_spoken_reply_cannot_have_is_refused(field: str, value: Any) -> None:
    with front_of(lambda: JSONResponse({})) as (url, engine):
        answer = httpx.post(url + CHAT, json={**IN_SPEECH, "tools": TOOLS, field: value})
    assert answer.status_code == 400
    assert (answer.json()["error"]["param"], answer.json()["error"]["code"]) == (field, "not_in_speech")
    assert engine.seen == []


@pytest.mark.parametrize(
    "fields",
    [
        {"logprobs": False, "top_logprobs": 0, "stop": [], "response_format": {"type": "text"}, "echo": False},
        {"logprobs": None, "stop": None, "response_format": None, "tool_choice": None},
        {"tools": "nonsense"},
        {"tools": [5, {"function": 5}, {"function": {"name": 5}}]},
        {"stop_token_ids": "nonsense"},
    ],
)
def test_what_asks_for_nothing_and_what_the_engine_refuses_itself_pass(fields: dict[str, Any]) -> None:
    refusal = {"error": {"message": "tools must be a list", "type": "BadRequestError", "code": 400}}
    with front_of(lambda: JSONResponse(refusal, 400)) as (url, engine):
        answer = httpx.post(url + CHAT, json={**IN_SPEECH, **fields})
    assert (answer.status_code, answer.json()) == (400, refusal)
    assert len(engine.seen) == 1


# a whole answer


def test_a_whole_answer_has_what_was_said_beside_what_was_written() -> None:
    answer = whole(answered(spoken("你好 hello", [12, 7, 6560], "More.")))
    (choice,) = answer["choices"]
    assert choice["message"] == {
        "role": "assistant",
        "content": "More.",
        "tts_content": {"tts_text": "你好 hello", "tts_audio": "<audio_12><audio_7><audio_6560>"},
        "tool_calls": [],
        "reasoning": None,
    }
    assert (choice["finish_reason"], answer["usage"]) == ("stop", USAGE)
    assert (choice["token_ids"], answer["prompt_token_ids"]) == (None, None)


def test_content_is_null_where_nothing_was_written() -> None:
    assert whole(answered(spoken("Hello", [1])))["choices"][0]["message"]["content"] is None


def test_a_reply_without_speech_has_an_empty_section() -> None:
    message = whole(answered([WORDS.tts_end, *TEXT.encode("No."), WORDS.end_of_turn]))["choices"][0]["message"]
    assert (message["content"], message["tts_content"]) == ("No.", {"tts_text": "", "tts_audio": ""})


def test_a_reply_that_is_cut_inside_a_character_has_all_up_to_there() -> None:
    (*_, cut) = TEXT.encode("龘")
    ids = [*TEXT.encode("a龘"), WORDS.first_speech_id + 5]
    ids.remove(cut)
    (choice,) = whole(answered(ids, reason="length"))["choices"]
    assert choice["finish_reason"] == "length"
    assert choice["message"]["tts_content"] == {"tts_text": "a\ufffd", "tts_audio": "<audio_5>"}


def test_ids_are_there_for_a_client_that_wants_them() -> None:
    ids = spoken("Hello", [1])
    answer = whole(answered(ids), return_token_ids=True)
    assert (answer["choices"][0]["token_ids"], answer["prompt_token_ids"]) == (ids, [1, 2, 3])
    events = stream([*streaming(ids, 2, 5), DONE], return_token_ids=True)
    assert [event.get("prompt_token_ids") for event in events] == [[1, 2, 3], None, None, None]
    assert sum([event["choices"][0].get("token_ids", []) for event in events], []) == ids  # noqa: RUF017  four


def test_calls_behind_the_speech_are_taken_out_of_the_content() -> None:
    (choice,) = whole(answered(spoken("Wait.", [3], f"So: {WEATHER}{TIME}")), tools=TOOLS)["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] == "So: "
    calls = choice["message"]["tool_calls"]
    assert [call["function"] for call in calls] == [
        {"name": "weather", "arguments": '{"city": "上海"}'},
        {"name": "time", "arguments": "{}"},
    ]
    assert {call["type"] for call in calls} == {"function"}
    assert len({call["id"] for call in calls}) == 2


@pytest.mark.parametrize("fields", [{}, {"tools": TOOLS, "tool_choice": "none"}, {"tools": TOOLS[1:]}])
def test_what_nobody_offered_stays_text(fields: dict[str, Any]) -> None:
    ids = spoken("Wait.", [3], WEATHER)
    (choice,) = whole(answered(ids), **fields)["choices"]
    assert (choice["message"]["content"], choice["message"]["tool_calls"]) == (WEATHER, [])
    assert choice["finish_reason"] == "stop"
    message = joined(stream(streaming(ids, 9), **fields))
    assert (message["content"], message["calls"], message["finish_reason"]) == (WEATHER, {}, "stop")


def test_a_reply_that_was_cut_says_so_also_where_it_called() -> None:
    ids, (*_, bracket) = spoken("Wait.", [3], WEATHER + TIME), TEXT.encode("</tool_call>")
    whole_call, half_call = ids[:-1], ids[: ids.index(bracket)]
    for cut in (whole_call, half_call):
        message = joined(stream(streaming(cut, 9, reason="length"), tools=TOOLS))
        assert (message["calls"][0]["name"], message["finish_reason"]) == ("weather", "length")
    (choice,) = whole(answered(whole_call, reason="length"), tools=TOOLS)["choices"]
    assert (len(choice["message"]["tool_calls"]), choice["finish_reason"]) == (2, "length")


def test_a_client_of_one_call_gets_the_first() -> None:
    ids, fields = spoken("Wait.", [3], WEATHER + TIME), {"tools": TOOLS, "parallel_tool_calls": False}
    (call,) = whole(answered(ids), **fields)["choices"][0]["message"]["tool_calls"]
    assert call["function"]["name"] == "weather"
    assert [call["name"] for call in joined(stream(streaming(ids, 20, 60), **fields))["calls"].values()] == ["weather"]


def test_each_choice_is_read_on_its_own() -> None:
    replies = [spoken("One", [1, 2], "a"), spoken("Twenty two", [3], f"b{TIME}")]
    (first, second) = whole(answered(*replies), tools=TOOLS, n=2)["choices"]
    assert first["message"]["tts_content"] == {"tts_text": "One", "tts_audio": "<audio_1><audio_2>"}
    assert (second["message"]["content"], second["finish_reason"]) == ("b", "tool_calls")
    taking_turns = itertools.zip_longest(
        *(streaming(ids, *range(1, len(ids)), index=index) for index, ids in enumerate(replies))
    )
    events = stream([piece for pair in taking_turns for piece in pair if piece], tools=TOOLS, n=2)
    for index, choice in enumerate((first, second)):
        message = joined(events, index)
        assert message["tts_text"] == choice["message"]["tts_content"]["tts_text"]
        assert message["tts_audio"] == choice["message"]["tts_content"]["tts_audio"]
        assert message["content"] == choice["message"]["content"]
        assert message["finish_reason"] == choice["finish_reason"]


def test_a_clients_own_stop_token_ends_the_reply_and_is_no_text() -> None:
    (period,) = TEXT.encode(".")
    message = whole(answered([*TEXT.encode("Hi"), period]), stop_token_ids=[period])["choices"][0]["message"]
    assert message["tts_content"]["tts_text"] == "Hi"


# a streamed answer

REPLY = spoken("天气 is fine 😀!", [*range(100, 130)], f"So: {WEATHER}{TIME}")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    cuts=st.lists(st.integers(0, len(REPLY)), max_size=20, unique=True).map(sorted),
    size=st.integers(1, 5000),
)
def test_streamed_in_any_portions_it_is_the_whole_answer(cuts: list[int], size: int) -> None:
    (choice,) = whole(answered(REPLY), tools=TOOLS)["choices"]
    written = b"".join([*streaming(REPLY, *cuts), DONE])
    pieces = [written[start : start + size] for start in range(0, len(written), size)]
    message = joined(stream(pieces, tools=TOOLS))
    assert message["tts_text"] == "天气 is fine 😀!" == choice["message"]["tts_content"]["tts_text"]
    assert message["tts_audio"] == choice["message"]["tts_content"]["tts_audio"]
    assert message["content"] == choice["message"]["content"] == "So: "
    assert message["finish_reason"] == choice["finish_reason"] == "tool_calls"
    calls = [(call["name"], json.loads(call["arguments"])) for call in message["calls"].values()]
    assert calls == [("weather", {"city": "上海"}), ("time", {})]


def test_the_first_delta_has_the_role_and_speech_comes_with_its_tokens() -> None:
    events = stream(streaming([WORDS.first_speech_id + 5, *TEXT.encode("H"), WORDS.end_of_turn], 1, 2))
    deltas = [event["choices"][0]["delta"] for event in events]
    assert deltas == [
        {"role": "assistant", "content": ""},
        {"tts_content": {"tts_audio": "<audio_5>"}},
        {"tts_content": {"tts_text": "H"}},
        {},
    ]


def test_an_unfinished_character_comes_with_the_last_delta() -> None:
    ids = TEXT.encode("龘")[:-1]
    *before, last = stream(streaming(ids, 1, reason="length"))
    assert joined(before)["tts_text"] == ""
    assert last["choices"][0]["delta"] == {"tts_content": {"tts_text": "\ufffd"}}


def test_usage_comments_and_errors_pass_as_they_came() -> None:
    usage = event({"id": "chatcmpl-1", "choices": [], "usage": USAGE})
    broken = b'data: {"error": {"message":  "the engine died", "code": 500}}\n\n'
    pieces: list[bytes | float] = [*streaming(spoken("Hi", [1])), b": still here\n\n", usage, broken, DONE]
    with front_of(lambda: RawAnswer(pieces)) as (url, _):
        answer = httpx.post(url + CHAT, json={**IN_SPEECH, "stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.content.endswith(b": still here\n\n" + usage + broken + DONE)


def test_events_come_as_they_are_made() -> None:
    pieces: list[bytes | float] = [beginning(0), delta(0, TEXT.encode("Hi")), 30.0]
    with (
        front_of(lambda: RawAnswer(pieces)) as (url, _),
        httpx.stream("POST", url + CHAT, json={**IN_SPEECH, "stream": True}, timeout=5) as answer,
    ):
        lines = (line for line in answer.iter_lines() if line)
        assert "assistant" in next(lines)
        assert json.loads(next(lines).removeprefix("data: "))["choices"][0]["delta"]["tts_content"]["tts_text"] == "Hi"


@pytest.mark.parametrize("began", [True, False])
def test_hanging_up_closes_the_engines_side_within_a_second(began: bool) -> None:
    held = RawAnswer([beginning(0), 30.0])
    with stub_engine(answering(lambda: held)) as engine, front(engine.url) as url:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(url + CHAT, json={**IN_SPEECH, "stream": began}, timeout=0.5)
        assert held.hung_up.wait(1.0)


@pytest.mark.parametrize("body", [b"no json at all", b"[1, 2]", b"{}", b'{"choices": 5}'])
def test_a_whole_answer_that_makes_no_sense_is_the_engines_failure(body: bytes) -> None:
    with front_of(lambda: Response(body)) as (url, _):
        answer = httpx.post(url + CHAT, json=IN_SPEECH)
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "engine_failed")


@pytest.mark.parametrize("data", [b"no json at all", b"[1, 2]"])
def test_a_streamed_answer_that_makes_no_sense_is_cut_short(data: bytes) -> None:
    with front_of(lambda: RawAnswer([b"data: " + data + b"\n\n", DONE])) as (url, _):
        with pytest.raises(httpx.RemoteProtocolError):
            httpx.post(url + CHAT, json={**IN_SPEECH, "stream": True})


def test_an_engine_that_breaks_off_before_the_end_is_its_failure() -> None:
    with front_of(lambda: RawAnswer([b'{"choices": [', 0.1], end=False)) as (url, _):
        answer = httpx.post(url + CHAT, json=IN_SPEECH)
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "engine_failed")


# and back again


def test_a_reply_sent_back_is_asked_of_the_engine_as_it_was_written() -> None:
    ids = spoken("Hello", [1, 2, 3], "More.")
    with front_of(lambda: JSONResponse(answered(ids))) as (url, engine):
        message = httpx.post(url + CHAT, json=IN_SPEECH).json()["choices"][0]["message"]
        again = {**IN_SPEECH, "messages": [user("Hi"), message, user("And?"), OPEN]}
        assert httpx.post(url + CHAT, json=again).status_code == 200
    spoken_part, text_part = json.loads(engine.seen[1][2])["messages"][1]["content"]
    assert text_part == {"type": "text", "text": "More."}
    assert ids_in_item(spoken_part) == [WORDS.tts_start, *ids[: ids.index(WORDS.tts_end) + 1]]


def test_whether_an_answer_is_streamed_is_said_without_words() -> None:
    with pytest.raises(BadRequest, match="true or false"):
        speech_chat({**IN_SPEECH, "stream": "false"})


def test_an_open_turn_is_recognised_by_its_last_words_alone() -> None:
    assert opens_speech(IN_SPEECH)
    assert not opens_speech({**IN_SPEECH, "messages": [user("Hi"), user("x")]})
    with pytest.raises(BadRequest):
        speech_chat({**IN_SPEECH, "echo": True})


# vLLM behind it


@pytest.mark.vllm
@pytest.mark.parametrize("streamed", [True, False])
def test_a_reply_out_of_all_rhythm_comes_back_as_the_model_wrote_it(golden_server: VllmServer, streamed: bool) -> None:
    """Weights at random: text and speech in no order, characters broken off, and a limit that cuts the section."""
    asked = {**IN_SPEECH, "max_tokens": 40, "temperature": 0, "return_token_ids": True}
    with front(golden_server.base_url) as url:
        history: list[dict[str, Any]] = [user("Hi")]
        if streamed:
            with httpx.stream("POST", url + CHAT, json={**asked, "stream": True}, timeout=60) as answer:
                lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
            events = [json.loads(line) for line in lines[:-1]]
            said = joined(events)
            ids = [token for written in events for token in written["choices"][0].get("token_ids", [])]
        else:
            choice = httpx.post(url + CHAT, json=asked, timeout=60).json()["choices"][0]
            said, ids = choice["message"]["tts_content"], choice["token_ids"]
        section = speech_section(ids, TEXT)
        assert len(ids) == 40 and section is not None
        assert section[1:] != interleave(TEXT.encode(said["tts_text"]), codes_of(said["tts_audio"], ""), WORDS)[1:-1]
        reply = {"role": "assistant", "tts_content": {key: said[key] for key in ("tts_text", "tts_audio")}}
        again = httpx.post(url + CHAT, json={**asked, "messages": [*history, reply, user("And?"), OPEN]}, timeout=60)
        assert again.status_code == 200, again.text
    prompt = TEXT.encode("<|BOT|>human\nHi<|EOT|><|BOT|>assistant\n") + section
    prompt += TEXT.encode("<|EOT|><|BOT|>human\nAnd?<|EOT|><|BOT|>assistant\n<tts_start>")
    assert again.json()["prompt_token_ids"] == prompt
