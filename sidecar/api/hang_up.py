"""Notice at once that a client has gone, also while nothing can be sent to it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from functools import wraps
from typing import TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive

Result = TypeVar("Result")
Endpoint = Callable[[Request], Awaitable[Response]]

#: A client that hung up reads no answer; the status is for the log (nginx's word for it).
CLIENT_CLOSED_REQUEST = 499


def quiet_when_hung_up(endpoint: Endpoint) -> Endpoint:
    """An endpoint whose client may leave at any time, also in the middle of its body, without that being an error."""

    @wraps(endpoint)
    async def quiet(request: Request) -> Response:
        try:
            return await endpoint(request)
        except ClientDisconnect:
            return Response(status_code=CLIENT_CLOSED_REQUEST)

    return quiet


async def unless_hung_up(receive: Receive, work: Coroutine[None, None, Result]) -> Result:
    """Do the work; cancel it the moment the client hangs up. The request's body must have been read.

    Raises:
        ClientDisconnect: the client went first. The work has been cancelled and is over.
    """
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(wait_for_hang_up(receive))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        working.cancel()
        watching.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def wait_for_hang_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
