"""`POST /v1/chat/completions`: vLLM's own endpoint on our port, once the request is known to be harmless.

An answer in text goes on byte by byte; one in speech is read from its token ids.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sidecar.api.hang_up import quiet_when_hung_up
from sidecar.api.relay import Relayed, as_json, ask, whole_body
from sidecar.api.services import Services
from sidecar.chat_reply import StreamedReply, WholeReply
from sidecar.chat_requests import ChatReader
from sidecar.engine.audio_items import recordings_reader
from sidecar.engine.prompts import chat_prompt, require_room
from sidecar.engine.speech_chat import SpeechChat, opens_speech, speech_chat


@quiet_when_hung_up
async def chat_completions(request: Request) -> Response:
    services: Services = request.app.state.services
    content, asked = await asyncio.to_thread(read, services, await request.body())
    answer = await ask(request, content)
    if asked is None or answer.status_code != 200:
        return Relayed(answer)
    if asked.streamed:
        return Relayed(answer, StreamedReply(asked, services.text, services.spoken_turns))
    reply = WholeReply(asked, services.text, services.spoken_turns)
    return JSONResponse(reply.read(await whole_body(request, answer)))


def read(services: Services, body: bytes) -> tuple[dict[str, Any], SpeechChat | None]:
    """What to send to the engine, and how to read its answer if that is speech. Decodes recordings: takes a thread."""
    limits, text = services.settings.limits, services.text
    reader = ChatReader(
        require_plain=text.require_plain,
        recording=recordings_reader(limits.max_recording_seconds, lambda: services.pipeline.max_model_len),
        spoken_turn=partial(services.spoken_turns.item, text=text),
    )
    chat = reader.read(body)
    asked = speech_chat(chat.body) if opens_speech(chat.body) else None
    content = as_json(chat.body if asked is None else asked.body)
    if chat.items:
        require_room(chat_prompt(chat.body, chat.items), text, services.pipeline.max_model_len)
    return content, asked


ROUTES = [Route("/v1/chat/completions", chat_completions, methods=["POST"])]
