"""GET /health, /ready and /metrics: is it alive, can it speak, how does it do."""

from __future__ import annotations

import os

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sidecar.api.replies import error_response
from sidecar.api.services import Services
from sidecar.errors import NotReady
from sidecar.metrics import CONTENT_TYPE
from sidecar.settings import ENGINE_PART, PROCESS_ID_HEADER


async def health(_: Request) -> Response:
    return JSONResponse({"status": "alive"})


async def ready(request: Request) -> Response:
    """Until it is, the answer lists what is missing: whoever starts the engine may wait until that comes first."""
    services: Services = request.app.state.services
    try:
        await services.require_ready()
        answer = JSONResponse({"status": "ready"})
    except NotReady as error:
        answer = error_response(error, missing=list(services.missing) or [ENGINE_PART])
    answer.headers[PROCESS_ID_HEADER] = str(os.getpid())
    return answer


async def metrics(request: Request) -> Response:
    services: Services = request.app.state.services
    return Response(services.metrics.render(), headers={"Content-Type": CONTENT_TYPE})


ROUTES = [
    Route("/health", health, methods=["GET"]),
    Route("/ready", ready, methods=["GET"]),
    Route("/metrics", metrics, methods=["GET"]),
]
