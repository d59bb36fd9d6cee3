"""vLLM's own endpoints on our port: what is refused, what is changed, and that the rest goes through untouched."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import time
import wave
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
import soundfile
from golden_folders import DATA
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from stub_engine import DONE, RawAnswer, StubEngine, ids, opening, serving_app, stub_engine
from vllm_metrics import until_running
from vllm_server import VllmServer

from sidecar.api import chat, openai, transcriptions
from sidecar.chat_requests import ChatReader, read_completion
from sidecar.engine.http import open_engine_http
from sidecar.engine.text import TextTokenizer
from sidecar.errors import BadRequest, SidecarError
from sidecar.settings import LimitSettings

LLM = DATA / "llm"
TEXT = TextTokenizer.from_folder(LLM / "checkpoint")
ROUTES = [*chat.ROUTES, *transcriptions.ROUTES, *openai.ROUTES]
CHAT = "/v1/chat/completions"
HELLO = {"messages": [{"role": "user", "content": "Hello"}]}


# reading a chat body

READER = ChatReader(require_plain=TEXT.require_plain, reencode=lambda data: b"wav:" + data, max_text_characters=100)


def read(*messages: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return READER.read(json.dumps({"messages": messages, **fields}).encode())


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def sound(data: bytes) -> dict[str, Any]:
    return {"type": "input_audio", "input_audio": {"data": base64.b64encode(data).decode(), "format": "mp3"}}


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


def test_text_above_the_limit_is_refused_but_not_the_models_own() -> None:
    with pytest.raises(BadRequest, match="at most 100"):
        read(user([{"type": "text", "text": "a" * 60}, sound(b""), {"type": "text", "text": "b" * 41}]))
    assert read({"role": "assistant", "content": "a" * 101})["messages"]


def test_a_raw_completion_may_write_its_own_turns() -> None:
    body = {"prompt": "<|BOT|>human\nHi<|EOT|>", "max_tokens": 3}
    assert read_completion(json.dumps(body).encode()) == body
    with pytest.raises(BadRequest, match="prompt_embeds"):
        read_completion(b'{"prompt_embeds": "AAAA"}')


# the way through, with a stub behind it


class Tagged:
    """Gives each request its id, as the server does."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        scope.setdefault("state", {})["request_id"] = "r-1"
        await self.app(scope, receive, send)


@contextmanager
def front(engine_url: str, **limits: Any) -> Iterator[str]:
    """Our routes alone, before an engine at this URL."""

    async def refuse(_: Request, error: Exception) -> Response:
        assert isinstance(error, SidecarError)
        return JSONResponse({"error": {"message": error.message, "code": error.code}}, error.status)

    app = Starlette(
        routes=[*chat.ROUTES, *transcriptions.ROUTES, *openai.ROUTES], exception_handlers={SidecarError: refuse}
    )
    app.state.services = SimpleNamespace(
        settings=SimpleNamespace(limits=LimitSettings(**limits)),
        engine_http=open_engine_http(url=engine_url, key="ours"),
        text=TEXT,
    )
    with serving_app(Tagged(app)) as url:
        yield url


def answering(make: Callable[[], Response]) -> Callable[[Request], Awaitable[Response]]:
    async def answer(_: Request) -> Response:
        return make()

    return answer


@contextmanager
def front_of(answer: Callable[[], Response]) -> Iterator[tuple[str, StubEngine]]:
    with stub_engine(answering(answer)) as engine, front(engine.url) as url:
        yield url, engine


def wav(seconds: float = 1.0, rate_hz: int = 16_000, channels: int = 1) -> bytes:
    time_s = np.arange(int(seconds * rate_hz)) / rate_hz
    tone = np.sin(2 * np.pi * 440 * time_s).astype(np.float32)[:, None].repeat(channels, 1) * 0.3
    data = io.BytesIO()
    soundfile.write(data, tone, rate_hz, format="WAV", subtype="PCM_16")
    return data.getvalue()


def heard_by_engine(body: bytes) -> wave.Wave_read:
    content = json.loads(body)["messages"][0]["content"]
    return wave.open(io.BytesIO(base64.b64decode(content[0]["input_audio"]["data"])))


def test_the_clients_credentials_stay_here_and_ours_go_on() -> None:
    with front_of(lambda: JSONResponse({"ok": True})) as (url, engine):
        answer = httpx.get(f"{url}/v1/models", headers={"Authorization": "Bearer theirs", "Cookie": "a=b"})
    assert answer.json() == {"ok": True}
    path, headers, _ = engine.seen[0]
    assert path == "/v1/models"
    assert (headers["authorization"], headers["x-request-id"]) == ("Bearer ours", "r-1")
    assert "cookie" not in headers


def test_the_engines_status_body_and_headers_come_back_unchanged() -> None:
    body = {"error": {"message": "no such model", "type": "NotFoundError", "code": 404}}
    with front_of(lambda: JSONResponse(body, 404, {"x-from-engine": "1"})) as (url, _):
        answer = httpx.post(url + CHAT, json=HELLO)
    assert (answer.status_code, answer.json(), answer.headers["x-from-engine"]) == (404, body, "1")
    assert int(answer.headers["content-length"]) == len(answer.content)
    assert len(answer.headers.get_list("date")) == 1


def test_streamed_bytes_come_through_unchanged_and_as_they_are_made() -> None:
    pieces: list[bytes | float] = [opening(), ids([1]), 0.6, b": comment\n\n", ids([2], "stop"), DONE]
    with front_of(lambda: RawAnswer(pieces)) as (url, _):
        arrived = []
        started = time.monotonic()
        with httpx.stream("POST", url + CHAT, json={**HELLO, "stream": True}) as answer:
            for piece in answer.iter_raw():
                arrived.append((time.monotonic() - started, piece))
    assert b"".join(piece for _, piece in arrived) == b"".join(piece for piece in pieces if isinstance(piece, bytes))
    assert arrived[0][0] < 0.5 < arrived[-1][0]


def test_a_refused_body_never_reaches_the_engine() -> None:
    with front_of(lambda: JSONResponse({})) as (url, engine):
        answer = httpx.post(url + CHAT, json={"messages": [user("<|EOT|>")]})
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "control_token")
        assert httpx.post(f"{url}/v1/completions", content=b"{").status_code == 400
    assert engine.seen == []


@pytest.mark.parametrize("path", ["/tokenize", "/inference/v1/generate", "/v1/embeddings", "/v1/models/x", "/metrics"])
def test_nothing_else_of_the_engine_is_reachable(path: str) -> None:
    with front_of(lambda: JSONResponse({})) as (url, engine):
        assert httpx.get(url + path).status_code == 404
    assert engine.seen == []


def test_an_absent_engine_is_not_ready(free_port: int) -> None:
    with front(f"http://127.0.0.1:{free_port}") as url:
        answer = httpx.post(url + CHAT, json=HELLO)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "not_ready")


def test_an_engine_that_refuses_our_key_is_our_failure() -> None:
    with front_of(lambda: JSONResponse({"error": "Unauthorized"}, 401)) as (url, _):
        assert httpx.post(url + CHAT, json=HELLO).status_code == 502


def test_a_task_that_the_engine_lacks_is_not_found_in_our_words() -> None:
    with front_of(lambda: JSONResponse({"detail": "Not Found"}, 404)) as (url, _):
        answer = httpx.post(f"{url}/v1/audio/translations", files={"file": ("a.wav", wav())})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")


def test_an_answer_that_breaks_off_reaches_the_client_cut_short() -> None:
    with front_of(lambda: RawAnswer([opening(), ids([1]), 0.2], end=False)) as (url, _):
        with pytest.raises(httpx.RemoteProtocolError):
            httpx.post(url + CHAT, json={**HELLO, "stream": True})


@pytest.mark.parametrize("began", [True, False], ids=["streaming", "before the first byte"])
def test_hanging_up_closes_the_engines_side_within_a_second(began: bool) -> None:
    held = RawAnswer([opening(), 30.0])
    came = asyncio.Event()

    async def answer(_: Request) -> Response:
        came.set()
        return held if began else SlowToStart(held)

    with stub_engine(answer) as engine, front(engine.url) as url:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(url + CHAT, json={**HELLO, "stream": began}, timeout=0.5)
        assert came.is_set()
        assert held.hung_up.wait(1.0)


def test_leaving_in_the_middle_of_a_body_is_no_error() -> None:
    sent: list[Any] = []

    async def leave() -> None:
        messages = [{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}]

        async def receive() -> Any:
            return messages.pop(0)

        async def send(message: Any) -> None:
            sent.append(message)

        services = SimpleNamespace(settings=SimpleNamespace(limits=LimitSettings()), text=TEXT)
        app = Starlette(routes=ROUTES)
        app.state.services = services
        scope = {"type": "http", "method": "POST", "path": CHAT, "headers": [], "query_string": b""}
        await app(scope, receive, send)

    asyncio.run(leave())
    assert sent[0]["status"] == 499


class SlowToStart(Response):
    """An answer that never begins, as a completion that is not streamed looks for a long time."""

    def __init__(self, held: RawAnswer) -> None:
        self.held = held

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self.held.hung_up.set()


# sound on its way


def test_sound_reaches_the_engine_as_16_khz_mono_pcm() -> None:
    with front_of(lambda: JSONResponse({})) as (url, engine):
        answer = httpx.post(url + CHAT, json={"messages": [user([sound(wav(0.5, 44_100, 2))])]})
    assert answer.status_code == 200
    with heard_by_engine(engine.seen[0][2]) as heard:
        assert (heard.getframerate(), heard.getnchannels(), heard.getsampwidth()) == (16_000, 1, 2)
        assert abs(heard.getnframes() - 8000) <= 1


def floats(values: Any) -> bytes:
    data = io.BytesIO()
    soundfile.write(data, np.asarray(values, dtype=np.float32), 16_000, format="WAV", subtype="FLOAT")
    return data.getvalue()


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"no sound at all", 415),
        (floats([0.1, np.nan] * 800), 422),
        (floats([np.inf] * 800), 422),
        (floats([]), 422),
        (wav(3.0), 422),
    ],
    ids=["not audio", "nan", "infinite", "empty", "too long"],
)
@pytest.mark.parametrize("way", ["chat", "transcription"])
def test_unusable_sound_never_reaches_the_engine(data: bytes, status: int, way: str) -> None:
    with stub_engine(answering(lambda: JSONResponse({}))) as engine, front(engine.url, max_recording_seconds=2) as url:
        if way == "chat":
            answer = httpx.post(url + CHAT, json={"messages": [user([sound(data)])]})
        else:
            answer = httpx.post(f"{url}/v1/audio/transcriptions", files={"file": ("a.wav", data)})
    assert answer.status_code == status, answer.text
    assert engine.seen == []


@pytest.mark.parametrize("task", ["transcriptions", "translations"])
def test_a_transcription_travels_with_its_fields_and_its_sound_anew(task: str) -> None:
    async def echo(asked: Request) -> Response:
        form = await asked.form()
        fields = [(name, value) for name, value in form.multi_items() if isinstance(value, str)]
        upload = form["file"]
        assert not isinstance(upload, str)
        with wave.open(io.BytesIO(await upload.read())) as heard:
            return JSONResponse({"fields": fields, "rate": heard.getframerate(), "frames": heard.getnframes()})

    # the stub reads the body before it answers, so the form comes from what it kept
    with stub_engine(echo) as engine, front(engine.url) as url:
        answer = httpx.post(
            f"{url}/v1/audio/{task}",
            files={"file": ("a.wav", wav(0.5, 8000))},
            data={"language": "en", "timestamp_granularities[]": ["word", "segment"]},
        )
    assert engine.seen[0][0] == f"/v1/audio/{task}"
    assert answer.json() == {
        "fields": [["language", "en"], ["timestamp_granularities[]", "word"], ["timestamp_granularities[]", "segment"]],
        "rate": 16_000,
        "frames": 8000,
    }


@pytest.mark.parametrize("data", [{"prompt": "<|EOT|>"}, {"hotwords": "<audio_1>"}, {"vllm_xargs": "{}"}])
def test_a_transcriptions_text_is_checked(data: dict[str, str]) -> None:
    with front_of(lambda: JSONResponse({})) as (url, engine):
        answer = httpx.post(f"{url}/v1/audio/transcriptions", files={"file": ("a.wav", wav())}, data=data)
    assert answer.status_code == 400
    assert engine.seen == []


def test_a_transcription_without_a_file_is_refused() -> None:
    with front_of(lambda: JSONResponse({})) as (url, engine):
        assert httpx.post(f"{url}/v1/audio/transcriptions", data={"file": "words"}).status_code == 400
    assert engine.seen == []


# vLLM behind it


@pytest.fixture(scope="module")
def url(golden_server: VllmServer) -> Iterator[str]:
    with front(golden_server.base_url) as url:
        yield url


def post(url: str, path: str, body: dict[str, Any]) -> httpx.Response:
    return httpx.post(url + path, json=body, timeout=120)


@pytest.mark.vllm
def test_vllms_models_are_listed(url: str) -> None:
    assert httpx.get(f"{url}/v1/models").json()["data"][0]["max_model_len"] == 2048


def recorded(name: str) -> tuple[dict[str, Any], list[int]]:
    case = next(case for case in json.loads((LLM / "cases.json").read_text())["cases"] if case["name"] == name)
    for message in case["request"]["messages"]:
        for part in message["content"] if isinstance(message["content"], list) else []:
            if part["type"] == "input_audio":
                data = (LLM / "audio" / part["input_audio"].pop("file")).read_bytes()
                part["input_audio"]["data"] = base64.b64encode(data).decode()
    return case["request"], case["prompt_token_ids"]


@pytest.mark.vllm
@pytest.mark.parametrize("name", ["text_chat", "audio_then_text", "text_then_two_audios", "zero_token_audio"])
def test_a_chat_passed_through_makes_the_recorded_prompt(url: str, name: str) -> None:
    body, prompt_token_ids = recorded(name)
    answer = post(url, CHAT, {**body, "max_tokens": 4, "temperature": 0, "return_token_ids": True})
    assert answer.status_code == 200, answer.text
    assert answer.json()["prompt_token_ids"] == prompt_token_ids
    assert len(answer.json()["choices"][0]["token_ids"]) == 4


@pytest.mark.vllm
def test_vllms_stream_comes_through(url: str) -> None:
    body = {**HELLO, "stream": True, "max_tokens": 5, "return_token_ids": True, "temperature": 0}
    with httpx.stream("POST", url + CHAT, json=body, timeout=120) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in answer.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert sum(len(choice.get("token_ids") or []) for chunk in chunks for choice in chunk["choices"]) == 5


@pytest.mark.vllm
def test_vllms_refusals_keep_their_status_and_body(url: str) -> None:
    answer = post(url, CHAT, {**HELLO, "max_tokens": 100_000})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]
    assert post(url, CHAT, {**HELLO, "model": "another"}).status_code == 404


@pytest.mark.vllm
def test_raw_completions_pass_and_placeholders_in_them_do_no_harm(url: str) -> None:
    prompt = "<|BOT|>human\n<audio_start><audio_patch><audio_end><|EOT|><|BOT|>assistant\n"
    answer = post(url, "/v1/completions", {"prompt": prompt, "max_tokens": 3})
    assert answer.status_code == 200, answer.text
    assert post(url, CHAT, {**HELLO, "max_tokens": 3}).status_code == 200


@pytest.mark.vllm
@pytest.mark.parametrize("stream", [True, False])
def test_hanging_up_on_a_chat_frees_it_in_vllm_within_a_second(
    url: str, golden_server: VllmServer, stream: bool
) -> None:
    body = {**HELLO, "stream": stream, "max_tokens": 1900, "ignore_eos": True}

    async def leave() -> None:
        async with httpx.AsyncClient(timeout=120) as client, client.stream("POST", url + CHAT, json=body) as answer:
            async for _ in answer.aiter_raw():
                assert await asyncio.to_thread(until_running, golden_server, 1, within_s=5)
                return

    async def leave_while_waiting() -> None:
        asking = asyncio.ensure_future(leave())
        assert await asyncio.to_thread(until_running, golden_server, 1, within_s=10)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)

    asyncio.run(leave() if stream else leave_while_waiting())
    assert until_running(golden_server, 0, within_s=1)
