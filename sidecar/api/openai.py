"""The rest of vLLM's own OpenAI endpoints, passed through on our port: completions and the list of models."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sidecar.api.hang_up import quiet_when_hung_up
from sidecar.api.relay import relay, relay_json
from sidecar.chat_requests import read_completion


@quiet_when_hung_up
async def models(request: Request) -> Response:
    return await relay(request, {})


@quiet_when_hung_up
async def completions(request: Request) -> Response:
    return await relay_json(request, read_completion(await request.body()))


ROUTES = [
    Route("/v1/models", models, methods=["GET"]),
    Route("/v1/completions", completions, methods=["POST"]),
]
