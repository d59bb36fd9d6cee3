"""A request on its way to the language model's own server, and its answer on the way back.

Answers go on byte by byte as they come, streamed or not, with vLLM's status and vLLM's error bodies; where others have
to take the place of these bytes, a `Rewriter` gives them.
"""

from __future__ import annotations

import json
import logging
from typing import Any, Protocol

import httpx
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from sidecar.api.hang_up import unless_hung_up
from sidecar.api.services import Services
from sidecar.engine.http import engine_error
from sidecar.errors import BadRequest, EngineFailed, NotFound, SidecarError

log = logging.getLogger(__name__)

#: Headers that belong to one connection, and those that our own server writes.
NOT_PASSED_ON = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "date",
        "server",
        "x-request-id",
    }
)


class Rewriter(Protocol):
    """Takes the bytes of an answer as they come and gives those to send on.

    Raises:
        SidecarError: the answer makes no sense.
    """

    def feed(self, piece: bytes) -> bytes: ...

    def finish(self) -> bytes: ...


class Unchanged:
    """Every byte as it came."""

    def feed(self, piece: bytes) -> bytes:
        return piece

    def finish(self) -> bytes:
        return b""


def as_json(body: dict[str, Any]) -> dict[str, Any]:
    """
    Raises:
        BadRequest: some text in it is no Unicode, which no tokenizer takes.
    """
    try:
        content = json.dumps(body, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise BadRequest(
            "the body holds half of a surrogate pair; send valid Unicode", code="invalid_unicode"
        ) from error
    return {"content": content, "headers": {"Content-Type": "application/json"}}


async def relay_json(request: Request, body: dict[str, Any]) -> Response:
    return await relay(request, as_json(body))


async def relay(request: Request, content: dict[str, Any]) -> Response:
    """Ask the engine the same path with this content, and pass its answer on; raises what `ask` does."""
    return Relayed(await ask(request, content))


async def ask(request: Request, content: dict[str, Any]) -> httpx.Response:
    """Ask the engine the same path with this content; its answer begins when its headers are there.

    The client's own headers stay here, so its credentials do too: the engine has a key of its own.

    Raises:
        NotReady, EngineFailed: the engine is not there, or gave no answer.
        NotFound: it has no such path, as without a task that the model lacks.
        ClientDisconnect: the client did not wait for it.
    """
    services: Services = request.app.state.services
    http = services.engine_http
    headers = {
        "Accept-Encoding": "identity",
        "X-Request-Id": request.state.request_id,
        **content.pop("headers", {}),
    }
    upstream = http.build_request(request.method, request.url.path, headers=headers, **content)
    try:
        answer = await unless_hung_up(request.receive, http.send(upstream, stream=True))
    except httpx.HTTPError as error:
        raise engine_error(error) from error
    if answer.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
        await answer.aclose()
        raise EngineFailed("the language model refuses this server's own key; restart both with the same one")
    if answer.status_code == httpx.codes.NOT_FOUND and b'"error"' not in await whole_body(request, answer):
        raise NotFound(f"the language model's server has no {request.url.path}: this model does not offer it")
    return answer


async def whole_body(request: Request, answer: httpx.Response) -> bytes:
    """All of an answer that has begun.

    Raises:
        EngineFailed: it broke off.
        ClientDisconnect: the client did not wait for it.
    """
    try:
        return await unless_hung_up(request.receive, answer.aread())
    except httpx.HTTPError as error:
        raise engine_error(error) from error
    finally:
        await answer.aclose()


class Relayed(Response):
    """An answer of the engine on its way to the client; whoever ends it first, the other side is closed."""

    def __init__(self, answer: httpx.Response, rewriter: Rewriter | None = None) -> None:
        self.answer = answer
        self.rewriter = rewriter or Unchanged()
        self.status_code = answer.status_code
        self.background = None
        kept_here = NOT_PASSED_ON if rewriter is None else NOT_PASSED_ON | {"content-length"}
        self.init_headers({name: value for name, value in answer.headers.items() if name not in kept_here})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await unless_hung_up(receive, self._pass_on(send))
        except ClientDisconnect:
            log.info("the client hung up on %s", scope["path"])
        except (httpx.HTTPError, SidecarError) as error:
            # the status has gone out: a body without its end is all that can still be said
            log.error("the engine broke off its answer to %s: %s %s", scope["path"], type(error).__name__, error)
        finally:
            await self.answer.aclose()

    async def _pass_on(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for piece in self.answer.aiter_bytes():
            await self._send_piece(send, self.rewriter.feed(piece))
        await self._send_piece(send, self.rewriter.finish())
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_piece(self, send: Send, piece: bytes) -> None:
        if piece:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
