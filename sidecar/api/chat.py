"""`POST /v1/chat/completions`: vLLM's own endpoint on our port, once the request is known to be harmless."""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sidecar.api.hang_up import quiet_when_hung_up
from sidecar.api.relay import relay_json
from sidecar.api.services import Services
from sidecar.audio.decode import reencoder
from sidecar.chat_requests import ChatReader


@quiet_when_hung_up
async def chat_completions(request: Request) -> Response:
    services: Services = request.app.state.services
    limits = services.settings.limits
    reader = ChatReader(
        require_plain=services.text.require_plain,
        reencode=reencoder(limits.max_recording_seconds),
        max_text_characters=limits.max_text_characters,
    )
    return await relay_json(request, await asyncio.to_thread(reader.read, await request.body()))


ROUTES = [Route("/v1/chat/completions", chat_completions, methods=["POST"])]
