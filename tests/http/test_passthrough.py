"""vLLM's own endpoints on our port: what is refused, what is changed, and that the rest goes through untouched."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import time
import wave
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
import soundfile
from chat_front import CHAT, ROUTES, TEXT, front, front_of, sound, user, wav
from golden_folders import DATA
from hostile_recordings import NO_SOUND, NOT_FINITE
from requests_with_audio import with_recordings
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from stub_engine import DONE, RawAnswer, ids, opening, stub_engine
from vllm_metrics import until_running
from vllm_server import VllmServer

from sidecar.settings import LimitSettings

LLM = DATA / "llm"
HELLO = {"messages": [{"role": "user", "content": "Hello"}]}


# the way through, with a stub behind it


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


@pytest.mark.parametrize("heard", [[], [sound(wav())]], ids=["text alone", "with a recording"])
def test_text_that_is_no_unicode_never_reaches_the_engine(heard: list[Any]) -> None:
    bodies = [
        {"messages": [user(["Hi", *heard]), {"role": "assistant", "content": "ab\ud83d"}, user("And?")]},
        {"messages": [user(["Hi", *heard])], "stop": ["\ud83d"]},
    ]
    with front_of(lambda: JSONResponse({})) as (url, engine):
        for body in bodies:
            answer = httpx.post(url + CHAT, content=json.dumps(body))
            assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_unicode")
        assert httpx.post(f"{url}/v1/completions", content=rb'{"prompt": "\ud83d"}').status_code == 400
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


def test_a_path_that_the_engine_lacks_is_not_found_in_our_words() -> None:
    with front_of(lambda: JSONResponse({"detail": "Not Found"}, 404)) as (url, _):
        answer = httpx.get(f"{url}/v1/models")
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


def samples_in(data: bytes) -> np.ndarray[Any, Any]:
    samples, rate_hz = soundfile.read(io.BytesIO(data), dtype="int16")
    assert rate_hz == 16_000
    return np.asarray(samples)


def test_a_long_recording_reaches_the_engine_in_pieces_of_25_seconds() -> None:
    with front_of(lambda: JSONResponse({})) as (url, engine):
        answer = httpx.post(url + CHAT, json={"messages": [user(["a", sound(wav(51)), "b"])]}, timeout=30)
    assert answer.status_code == 200, answer.text
    parts = json.loads(engine.seen[0][2])["messages"][0]["content"]
    assert [part.get("text", "sound") for part in parts] == ["a", "sound", "sound", "sound", "b"]
    pieces = [samples_in(base64.b64decode(part["input_audio"]["data"])) for part in parts[1:-1]]
    assert [len(piece) for piece in pieces] == [400_000, 400_000, 16_000]
    assert np.array_equal(np.concatenate(pieces), samples_in(wav(51)))


def test_a_recording_over_the_limit_is_refused_with_the_limit() -> None:
    with front_of(lambda: JSONResponse({}), max_recording_seconds=2) as (url, engine):
        error = httpx.post(url + CHAT, json={"messages": [user([sound(wav(3))])]}).json()["error"]
    assert error["code"] == "recording_too_long"
    assert "2 s" in error["message"]
    assert engine.seen == []


@pytest.mark.parametrize("before", [[], [user("words " * 20), {"role": "assistant", "content": "more words"}]])
def test_what_does_not_fit_the_context_is_refused_with_the_seconds_that_would(before: list[Any]) -> None:
    def ask(url: str, seconds: float) -> httpx.Response:
        return httpx.post(url + CHAT, json={"messages": [*before, user([sound(wav(seconds))])]}, timeout=30)

    with front_of(lambda: JSONResponse({}), max_model_len=600) as (url, engine):
        refused = ask(url, 60)
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "context_length_exceeded")
        assert engine.seen == []
        longest_s = float(refused.json()["error"]["message"].partition("may last ")[2].partition(" s")[0])
        assert 35 < longest_s < 48
        assert ask(url, longest_s + 0.2).status_code == 400
        assert ask(url, longest_s).status_code == 200


def test_what_comes_after_a_full_context_is_not_even_decoded() -> None:
    """Some kilobytes of silence are an hour of it; hundreds of them would fill any memory."""
    messages = [user([sound(wav(60))]), user([sound(b"no sound at all")] * 3)]
    with front_of(lambda: JSONResponse({}), max_model_len=600) as (url, engine):
        error = httpx.post(url + CHAT, json={"messages": messages}, timeout=30).json()["error"]
        assert (error["code"], engine.seen) == ("context_length_exceeded", [])
        longest_s = float(error["message"].partition("may last ")[2].partition(" s")[0])
        messages[:] = [user([sound(wav(longest_s))]), user([])]
        assert httpx.post(url + CHAT, json={"messages": messages}, timeout=30).status_code == 200


def test_a_conversation_that_is_too_long_without_its_recordings_is_told_so() -> None:
    said = {"role": "assistant", "tts_content": {"tts_audio": "<audio_5>" * 800}}
    with front_of(lambda: JSONResponse({}), max_model_len=600) as (url, engine):
        error = httpx.post(url + CHAT, json={"messages": [said, user([sound(wav(1))])]}).json()["error"]
    assert error["code"] == "context_length_exceeded"
    assert "conversation" in error["message"] and " s " not in error["message"]
    assert engine.seen == []


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"no sound at all", 415),
        (NOT_FINITE["nan"], 422),
        (NOT_FINITE["infinity"], 422),
        (NO_SOUND["no samples"], 422),
        (wav(3.0), 400),
    ],
    ids=["not audio", "nan", "infinite", "empty", "too long"],
)
def test_unusable_sound_never_reaches_the_engine(data: bytes, status: int) -> None:
    with front_of(lambda: JSONResponse({}), max_recording_seconds=2) as (url, engine):
        answer = httpx.post(url + CHAT, json={"messages": [user([sound(data)])]})
    assert answer.status_code == status, answer.text
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


def recorded_chats() -> list[Any]:
    """Every recorded conversation: recordings, tools, tool results, spoken turns, turns left open."""
    chats = json.loads((LLM / "cases.json").read_text(encoding="utf-8"))["cases"]
    chats += json.loads((DATA / "ta4" / "render.json").read_text(encoding="utf-8"))["cases"]
    return [pytest.param(chat, id=chat["name"]) for chat in chats if chat.get("request")]


@pytest.mark.vllm
@pytest.mark.parametrize("case", recorded_chats())
def test_a_chat_through_our_port_makes_the_recorded_prompt(url: str, case: dict[str, Any]) -> None:
    body = with_recordings(case["request"], LLM / "audio")
    answer = post(url, CHAT, {**body, "max_tokens": 4, "temperature": 0, "return_token_ids": True, "ignore_eos": True})
    assert answer.status_code == 200, answer.text
    recorded = (case["prompt_token_ids"], case.get("prompt_token_ids_joined"))
    assert answer.json()["prompt_token_ids"] in recorded
    assert len(answer.json()["choices"][0]["token_ids"]) == 4
    assert answer.json()["usage"]["prompt_tokens"] == len(answer.json()["prompt_token_ids"])


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
