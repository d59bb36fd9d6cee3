"""A server in vLLM's place, for what a real one cannot be made to do: break off, fall silent, send error events."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

Answer = Callable[[Request], Awaitable[Response]]


@dataclass
class StubEngine:
    """Answers every path with `answer`, and keeps what came."""

    answer: Answer
    url: str = ""
    seen: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)  # path, headers, body

    async def handle(self, request: Request) -> Response:
        self.seen.append((request.url.path, dict(request.headers), await request.body()))
        return await self.answer(request)


@contextmanager
def stub_engine(answer: Answer, *, socket: Path | None = None) -> Iterator[StubEngine]:
    """Serve on a free port of loopback, or on a unix socket."""
    engine = StubEngine(answer)
    app = Starlette(routes=[Route("/{path:path}", engine.handle, methods=["GET", "POST"])])
    with serving_app(app, socket=socket) as url:
        engine.url = url
        yield engine


@contextmanager
def serving_app(app: Any, *, socket: Path | None = None) -> Iterator[str]:
    """Any ASGI app behind a real uvicorn in a thread; its URL."""
    config = uvicorn.Config(
        app,
        host="127.0.0.1",
        port=0,
        uds=str(socket) if socket else None,
        log_level="error",
        lifespan="off",
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        time.sleep(0.01)
    try:
        port = 0 if socket else server.servers[0].sockets[0].getsockname()[1]
        yield "http://engine" if socket else f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(10)


def event(value: Any) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def opening(prompt_token_ids: list[int] | None = None) -> bytes:
    delta = {"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
    return event({"choices": [delta], "prompt_token_ids": prompt_token_ids or [1, 2, 3]})


def ids(token_ids: list[int], finish_reason: str | None = None) -> bytes:
    return event({"choices": [{"index": 0, "delta": {}, "finish_reason": finish_reason, "token_ids": token_ids}]})


DONE = b"data: [DONE]\n\n"


class RawAnswer(Response):
    """Pieces sent one by one. Numbers are waits in seconds; `end=False` breaks the connection off after the last.

    Sets `hung_up` when the client goes first.
    """

    def __init__(
        self, pieces: list[bytes | float], *, end: bool = True, status: int = 200, type: str = "text/event-stream"
    ) -> None:
        self.pieces = pieces
        self.type = type
        self.end = end
        self.status_code = status
        self.hung_up = threading.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            self.hung_up.set()

        watching = asyncio.ensure_future(watch())
        headers = [(b"content-type", f"{self.type}; charset=utf-8".encode())]
        await send({"type": "http.response.start", "status": self.status_code, "headers": headers})
        for piece in self.pieces:
            if isinstance(piece, bytes):
                await send({"type": "http.response.body", "body": piece, "more_body": True})
                continue
            await asyncio.wait({watching}, timeout=piece)
            if self.hung_up.is_set():
                return
        if self.end:
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        watching.cancel()
