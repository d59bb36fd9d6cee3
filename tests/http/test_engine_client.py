"""The language model over HTTP: ids as they come, and what every way of failing is called.

Failures that vLLM cannot be made to have come from a stub server; the rest runs against vLLM itself.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from golden_folders import DATA
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from stub_engine import DONE, RawAnswer, event, ids, opening, stub_engine
from vllm_metrics import until_running
from vllm_server import VllmServer

from sidecar.engine.client import Accepted, EngineRequest, ModelInfo, Sampling, TokenDelta
from sidecar.engine.events import EventReader
from sidecar.engine.http import KEEPALIVE_EXPIRY_S, HttpEngine, open_engine_http
from sidecar.engine.prompts import count_prompt_tokens, read_aloud
from sidecar.engine.scripted import ScriptedEngine
from sidecar.engine.text import TextTokenizer
from sidecar.errors import BadRequest, EngineFailed, NotReady, SidecarError

CHECKPOINT = DATA / "llm/checkpoint"
SAMPLING = Sampling(temperature=0.0, top_p=1.0, top_k=-1, min_p=0.0, repetition_penalty=1.0, max_tokens=16, seed=1)
MESSAGES = read_aloud("The river runs.", "Read this paragraph at a natural pace.").messages
Heard = list[Accepted | TokenDelta]


def request(**changes: Any) -> EngineRequest:
    return EngineRequest(**{"request_id": "r-1", "messages": MESSAGES, "sampling": SAMPLING, **changes})


async def hear(engine: HttpEngine | ScriptedEngine, asked: EngineRequest | None = None) -> Heard:
    return [item async for item in engine.generate(asked or request())]


def hear_from(url: str | None = None, socket: Path | None = None, **options: Any) -> Heard:
    async def listen() -> Heard:
        async with open_engine_http(url=url, socket=socket, **options) as http:
            return await hear(HttpEngine(http))

    return asyncio.run(listen())


def answering(make: Callable[[], Response]) -> Callable[[Request], Awaitable[Response]]:
    async def answer(_: Request) -> Response:
        return make()

    return answer


def token_ids(heard: Heard) -> list[int]:
    return [token_id for item in heard if isinstance(item, TokenDelta) for token_id in item.token_ids]


# the stream of events

STREAM = [
    b": keep-alive\n\n",
    opening([7, 8]),
    ids([1]),
    ids([]),
    ids([2, 3]),
    b"\n",
    ids([4], "stop"),
    event({"choices": [], "usage": {"completion_tokens": 4}}),
    DONE,
]


def read(pieces: list[bytes]) -> Heard:
    reader = EventReader()
    heard = [item for piece in pieces for item in reader.feed(piece)]
    reader.finish()
    return heard


def test_the_prompt_comes_first_and_every_id_once() -> None:
    assert read(STREAM) == [Accepted([7, 8]), TokenDelta([1]), TokenDelta([2, 3]), TokenDelta([4], "stop")]


@pytest.mark.parametrize("size", [1, 2, 7, 64, 10_000])
@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
def test_events_may_be_cut_anywhere(size: int, newline: bytes) -> None:
    whole = b"".join(STREAM).replace(b"\n", newline)
    assert read([whole[start : start + size] for start in range(0, len(whole), size)]) == read(STREAM)


@pytest.mark.parametrize(
    ("pieces", "word"),
    [
        ([opening(), ids([1]), DONE], "broke off"),
        ([opening(), ids([1])], "broke off"),
        ([], "broke off"),
        ([opening(), ids([1], "abort")], "abort"),
        ([opening(), b"data: {oops\n\n"], "no JSON"),
        ([opening(), b"data: [1]\n\n"], "no object"),
        ([opening(), event({"error": {"message": "engine died", "code": 500}}), DONE], "engine died"),
        ([opening(), event({"error": {"message": "late blame", "code": 400}}), DONE], "late blame"),
        ([event({"error": "just words"}), DONE], "just words"),
    ],
)
def test_a_reply_that_does_not_end_well_is_a_failure(pieces: list[bytes], word: str) -> None:
    with pytest.raises(EngineFailed, match=word):
        read(pieces)


def test_an_error_event_that_blames_the_request_is_a_refusal() -> None:
    with pytest.raises(BadRequest, match="too long"):
        read([event({"error": {"message": "too long", "code": 400}}), DONE])


# the connection


def test_ids_come_over_tcp_with_key_and_request_id() -> None:
    with stub_engine(answering(lambda: RawAnswer(list(STREAM)))) as engine:
        assert token_ids(hear_from(engine.url, key="secret")) == [1, 2, 3, 4]
    path, headers, body = engine.seen[0]
    assert path == "/v1/chat/completions"
    assert (headers["authorization"], headers["x-request-id"]) == ("Bearer secret", "r-1")
    sent = json.loads(body)
    assert sent["messages"] == MESSAGES
    assert (sent["stream"], sent["return_token_ids"], sent["skip_special_tokens"]) == (True, True, False)
    assert (sent["continue_final_message"], sent["add_generation_prompt"]) == (True, False)
    assert (sent["max_tokens"], sent["seed"], sent["top_k"]) == (16, 1, -1)


def test_ids_come_over_a_unix_socket(tmp_path: Path) -> None:
    socket = tmp_path / "engine.sock"
    with stub_engine(answering(lambda: RawAnswer(list(STREAM))), socket=socket):
        assert token_ids(hear_from(socket=socket)) == [1, 2, 3, 4]


def test_nobody_listening_is_not_ready(free_port: int, tmp_path: Path) -> None:
    with pytest.raises(NotReady):
        hear_from(f"http://127.0.0.1:{free_port}")
    with pytest.raises(NotReady):
        hear_from(socket=tmp_path / "none.sock")


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, BadRequest), (401, EngineFailed), (404, EngineFailed), (500, EngineFailed), (503, EngineFailed)],
)
def test_a_refusal_says_what_the_engine_said(status: int, kind: type[SidecarError]) -> None:
    body = {"error": {"message": "because of this", "code": status}}
    with stub_engine(answering(lambda: JSONResponse(body, status))) as engine:
        with pytest.raises(kind, match="because of this"):
            hear_from(engine.url)


def test_a_connection_that_breaks_is_a_failure_after_what_came() -> None:
    heard: Heard = []

    async def listen(url: str) -> None:
        async with open_engine_http(url=url) as http:
            async for item in HttpEngine(http).generate(request()):
                heard.append(item)

    with stub_engine(answering(lambda: RawAnswer([opening(), ids([1, 2]), 0.2], end=False))) as engine:
        with pytest.raises(EngineFailed, match="broke"):
            asyncio.run(listen(engine.url))
    assert token_ids(heard) == [1, 2]


def test_a_connection_that_breaks_after_the_finish_reason_takes_nothing_away() -> None:
    with stub_engine(answering(lambda: RawAnswer([opening(), ids([1, 2], "stop"), 0.2], end=False))) as engine:
        assert token_ids(hear_from(engine.url)) == [1, 2]


def test_an_engine_that_falls_silent_is_a_failure() -> None:
    with stub_engine(answering(lambda: RawAnswer([opening(), 30.0]))) as engine:
        started = time.monotonic()
        with pytest.raises(EngineFailed, match="silent"):
            hear_from(engine.url, read_timeout_s=0.3)
        assert time.monotonic() - started < 5


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("way", ["closed", "cancelled"])
def test_leaving_a_reply_closes_the_connection_within_a_second(way: str) -> None:
    answer = RawAnswer([opening(), ids([1]), 30.0])

    async def leave(url: str) -> None:
        async with open_engine_http(url=url) as http:
            async with aclosing(HttpEngine(http).generate(request())) as reply:
                assert isinstance(await anext(reply), Accepted)
                assert await anext(reply) == TokenDelta([1])
                if way == "cancelled":
                    with pytest.raises(TimeoutError):
                        await asyncio.wait_for(anext(reply), 0.1)
            assert await asyncio.to_thread(answer.hung_up.wait, 1.0)

    with stub_engine(answering(lambda: answer)) as engine:
        asyncio.run(leave(engine.url))


def test_a_connection_is_used_again_after_a_whole_reply() -> None:
    ports: set[int] = set()

    async def answer(asked: Request) -> Response:
        assert asked.client is not None
        ports.add(asked.client.port)
        return RawAnswer(list(STREAM))

    async def listen(url: str) -> None:
        async with open_engine_http(url=url) as http:
            for _ in range(3):
                await hear(HttpEngine(http))

    with stub_engine(answer) as engine:
        asyncio.run(listen(engine.url))
    assert len(ports) == 1


def test_idle_connections_are_let_go_before_vllm_closes_them() -> None:
    assert KEEPALIVE_EXPIRY_S < 5


def info_of(url: str) -> ModelInfo:
    async def ask() -> ModelInfo:
        async with open_engine_http(url=url) as http:
            return await HttpEngine(http).model_info()

    return asyncio.run(ask())


def ready(url: str) -> bool:
    async def ask() -> bool:
        async with open_engine_http(url=url) as http:
            return await HttpEngine(http).is_ready()

    return asyncio.run(ask())


@pytest.mark.parametrize(("status", "expected"), [(200, True), (503, False)])
def test_readiness_is_the_engines_health(status: int, expected: bool) -> None:
    with stub_engine(answering(lambda: Response(status_code=status))) as engine:
        assert ready(engine.url) is expected


def test_an_engine_that_is_not_there_is_not_ready(free_port: int) -> None:
    assert ready(f"http://127.0.0.1:{free_port}") is False
    with pytest.raises(NotReady):
        info_of(f"http://127.0.0.1:{free_port}")


def test_model_information_that_makes_no_sense_is_a_failure() -> None:
    with stub_engine(answering(lambda: JSONResponse({"data": []}))) as engine:
        with pytest.raises(EngineFailed, match="/v1/models"):
            info_of(engine.url)


# the scripted engine


def test_a_scripted_engine_says_its_ids_in_deltas() -> None:
    engine = ScriptedEngine([1, 2, 3], delta_tokens=2, finish_reason="length", prompt_token_ids=[9])
    assert asyncio.run(hear(engine)) == [Accepted([9]), TokenDelta([1, 2]), TokenDelta([3], "length")]
    assert engine.requests == [request()]
    assert (engine.running, engine.tokens_said) == (0, 3)


def test_a_scripted_engine_with_nothing_to_say_still_ends() -> None:
    assert asyncio.run(hear(ScriptedEngine([]))) == [Accepted([]), TokenDelta([], "stop")]


def test_a_scripted_engine_refuses_and_fails_as_told() -> None:
    with pytest.raises(NotReady):
        asyncio.run(hear(ScriptedEngine([1], refusal=NotReady("no"))))
    engine = ScriptedEngine([1, 2, 3], failure=EngineFailed("gone"), fail_after_tokens=2)
    with pytest.raises(EngineFailed):
        asyncio.run(hear(engine))
    assert (engine.running, engine.tokens_said) == (0, 2)


def test_a_scripted_engine_waits_on_the_clock_it_is_given() -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    asyncio.run(hear(ScriptedEngine([1, 2], delta_s=0.5, sleep=sleep)))
    assert waits == [0.5, 0.5]


# vLLM itself


@pytest.mark.vllm
def test_vllm_streams_ids_of_a_speech_reply(golden_server: VllmServer) -> None:
    heard = hear_from(golden_server.base_url)
    text = TextTokenizer.from_folder(CHECKPOINT)
    assert isinstance(heard[0], Accepted)
    assert heard[0].prompt_token_ids[-1] == text.vocabulary.tts_start
    assert len(heard[0].prompt_token_ids) == count_prompt_tokens(
        read_aloud("The river runs.", "Read this paragraph at a natural pace."), text
    )
    assert len(token_ids(heard)) == SAMPLING.max_tokens
    last = heard[-1]
    assert isinstance(last, TokenDelta) and last.finish_reason == "length"
    assert len(heard) > 3, "ids must come as they are made"


@pytest.mark.vllm
def test_vllm_says_how_long_its_context_is(golden_server: VllmServer) -> None:
    assert info_of(golden_server.base_url).max_model_len == 2048
    assert ready(golden_server.base_url)


@pytest.mark.vllm
def test_vllm_refuses_more_tokens_than_it_can_hold(golden_server: VllmServer) -> None:
    sampling = Sampling(**{**vars(SAMPLING), "max_tokens": 100_000})

    async def listen() -> Heard:
        async with open_engine_http(url=golden_server.base_url) as http:
            return await hear(HttpEngine(http), request(sampling=sampling))

    with pytest.raises(BadRequest, match="2048"):
        asyncio.run(listen())


@pytest.mark.vllm
def test_leaving_a_reply_frees_it_in_vllm_within_a_second(golden_server: VllmServer) -> None:
    sampling = Sampling(**{**vars(SAMPLING), "max_tokens": 1900})

    async def leave() -> None:
        async with open_engine_http(url=golden_server.base_url) as http:
            async with aclosing(HttpEngine(http).generate(request(sampling=sampling))) as reply:
                for _ in range(3):
                    await anext(reply)
                assert await asyncio.to_thread(until_running, golden_server, 1, within_s=5)

    asyncio.run(leave())
    assert until_running(golden_server, 0, within_s=1)
