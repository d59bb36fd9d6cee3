"""GET /health, /ready and /metrics: is it alive, can it speak, how does it do."""

from __future__ import annotations

import os

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sidecar.api.services import Services
from sidecar.metrics import CONTENT_TYPE
from sidecar.settings import PROCESS_ID_HEADER


async def health(_: Request) -> Response:
    return JSONResponse({"status": "alive"})


async def ready(request: Request) -> Response:
    services: Services = request.app.state.services
    await services.require_ready()
    return JSONResponse({"status": "ready"}, headers={PROCESS_ID_HEADER: str(os.getpid())})


async def metrics(request: Request) -> Response:
    services: Services = request.app.state.services
    return Response(services.metrics.render(), headers={"Content-Type": CONTENT_TYPE})


ROUTES = [
    Route("/health", health, methods=["GET"]),
    Route("/ready", ready, methods=["GET"]),
    Route("/metrics", metrics, methods=["GET"]),
]
