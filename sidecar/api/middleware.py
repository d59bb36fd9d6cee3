"""What holds for every route: each answer carries a request id, and no body may be longer than the limit."""

from __future__ import annotations

import asyncio
import uuid
from contextlib import suppress

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sidecar.errors import TooLarge

REQUEST_ID_HEADER = "X-Request-Id"
#: How long the rest of a body that is too long is read and thrown away. A client that is still sending when the
#: connection closes may never see the answer.
DISCARD_S = 2.0


class RequestId:
    """Names every request `request.state.request_id`, and says so in the answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[REQUEST_ID_HEADER] = request_id
            await send(message)

        await self._app(scope, receive, send_with_id)


class BodyLimit:
    """Raises TooLarge where a route reads more than `max_bytes` of a body, or would have to."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        announced = headers.get("content-length", "")
        too_long = announced.isdecimal() and int(announced[:20]) > self._max_bytes
        waits_for_go_ahead = headers.get("expect", "").lower() == "100-continue"
        received_bytes = 0

        async def limited() -> Message:
            nonlocal received_bytes
            if too_long and waits_for_go_ahead:
                raise self._too_large()
            message = await receive()
            received_bytes += len(message.get("body", b""))
            if too_long or received_bytes > self._max_bytes:
                await discard(receive, message)
                raise self._too_large()
            return message

        await self._app(scope, limited, send)

    def _too_large(self) -> TooLarge:
        return TooLarge(f"the body is above the limit of {self._max_bytes:,} bytes; send a shorter recording")


async def discard(receive: Receive, message: Message) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(DISCARD_S):
            while message["type"] == "http.request" and message.get("more_body", False):
                message = await receive()
