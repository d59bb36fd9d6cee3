"""Some of our routes alone, in front of an engine at a URL: what they send on and what they make of the answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from golden_folders import DATA
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from stub_engine import serving_app

from sidecar.engine.http import open_engine_http
from sidecar.engine.spoken_turns import SpokenTurns
from sidecar.engine.text import TextTokenizer
from sidecar.errors import SidecarError
from sidecar.settings import LimitSettings

TEXT = TextTokenizer.from_folder(DATA / "llm" / "checkpoint")


class Tagged:
    """Gives each request its id, as the server does."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        scope.setdefault("state", {})["request_id"] = "r-1"
        await self.app(scope, receive, send)


async def refuse(_: Request, error: Exception) -> Response:
    assert isinstance(error, SidecarError)
    body = {"message": error.message, "code": error.code, "param": error.param}
    return JSONResponse({"error": body}, error.status)


@contextmanager
def front(routes: Sequence[Route], engine_url: str, *, max_model_len: int = 2048, **limits: Any) -> Iterator[str]:
    """Serve the routes on a free port; `limits` are those of `LimitSettings`."""
    app = Starlette(routes=list(routes), exception_handlers={SidecarError: refuse})
    app.state.services = SimpleNamespace(
        settings=SimpleNamespace(limits=LimitSettings(**limits)),
        engine_http=open_engine_http(url=engine_url, key="ours"),
        text=TEXT,
        spoken_turns=SpokenTurns(),
        pipeline=SimpleNamespace(max_model_len=max_model_len),
    )
    with serving_app(Tagged(app)) as url:
        yield url
