"""`POST /v1/audio/transcriptions` and `/v1/audio/translations`: vLLM's own endpoints on our port."""

from __future__ import annotations

import asyncio

from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sidecar.api.hang_up import quiet_when_hung_up
from sidecar.api.relay import relay
from sidecar.api.services import Services
from sidecar.audio.decode import reencoder
from sidecar.errors import BadRequest

#: Form fields of a transcription that reach past the model's own prompt.
REFUSED_FORM_FIELDS = frozenset({"vllm_xargs"})


@quiet_when_hung_up
async def transcriptions(request: Request) -> Response:
    """`POST /v1/audio/transcriptions` and `/v1/audio/translations`: a form with a recording in `file`."""
    services: Services = request.app.state.services
    reencode = reencoder(services.settings.limits.max_recording_seconds)
    async with request.form() as form:
        recording = form.get("file")
        if not isinstance(recording, UploadFile):
            raise BadRequest("file must be a recording, sent as multipart/form-data", param="file")
        fields = [(name, value) for name, value in form.multi_items() if name != "file"]
        texts = [(name, form_text(name, value)) for name, value in fields]
        for name, text in texts:
            services.text.require_plain(text, name)
        wav = await asyncio.to_thread(reencode, await recording.read())
    grouped = {name: [text for other, text in texts if other == name] for name, _ in texts}
    return await relay(request, {"data": grouped, "files": {"file": ("recording.wav", wav, "audio/wav")}})


def form_text(name: str, value: str | UploadFile) -> str:
    if not isinstance(value, str):
        raise BadRequest(f"{name} is a file; only file may be one", param=name)
    if name in REFUSED_FORM_FIELDS:
        raise BadRequest(f"{name} is not accepted by this server; remove it", param=name, code="field_not_accepted")
    return value


ROUTES = [
    Route("/v1/audio/transcriptions", transcriptions, methods=["POST"]),
    Route("/v1/audio/translations", transcriptions, methods=["POST"]),
]
