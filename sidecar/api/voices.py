"""GET, POST and DELETE /v1/voices: which voices there are, one more from a recording, one less."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from starlette.datastructures import FormData, UploadFile
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sidecar.api.forms import multipart_form
from sidecar.api.hang_up import quiet_when_hung_up, unless_hung_up
from sidecar.api.middleware import BodyLimit
from sidecar.api.services import Services
from sidecar.errors import BadRequest, TooLarge, UnsupportedMedia, UnusableAudio
from sidecar.voices.recording import MAX_BYTES

if TYPE_CHECKING:
    from sidecar.voices.library import Voice, VoiceLibrary

logger = logging.getLogger(__name__)

MULTIPART = "multipart/form-data"
#: What a form may have beside the recording.
_FORM_BYTES = 1_000_000


async def list_voices(request: Request) -> Response:
    voices = _library(request)
    return JSONResponse({"object": "list", "data": [described(one, voices) for one in await voices.voices()]})


@quiet_when_hung_up
async def add_voice(request: Request) -> Response:
    """201, or 200 where the same recording went by this name already."""
    name, recording = await read_upload(request)
    voices = _library(request)
    try:
        added, new = await unless_hung_up(request.receive, voices.add(name, recording))
    except (TooLarge, UnsupportedMedia, UnusableAudio) as error:
        error.param = "file"
        raise
    logger.info("voice added: name=%s id=%s request_id=%s", added.name, added.id, request.state.request_id)
    return JSONResponse(described(added, voices), status_code=201 if new else 200)


async def delete_voice(request: Request) -> Response:
    deleted = await _library(request).delete(request.path_params["name"])
    logger.info("voice deleted: name=%s id=%s request_id=%s", deleted.name, deleted.id, request.state.request_id)
    return JSONResponse({"id": deleted.id, "object": "voice.deleted", "name": deleted.name, "deleted": True})


ROUTES = [
    Route("/v1/voices", list_voices, methods=["GET"]),
    Route(
        "/v1/voices",
        add_voice,
        methods=["POST"],
        middleware=[Middleware(BodyLimit, MAX_BYTES + _FORM_BYTES)],
    ),
    Route("/v1/voices/{name}", delete_voice, methods=["DELETE"]),
]


def described(voice: Voice, voices: VoiceLibrary) -> dict[str, Any]:
    return {
        "id": voice.id,
        "object": "voice",
        "name": voice.name,
        "duration_seconds": round(voice.seconds, 3),
        "built_in": voice.built_in,
        "default": voice.name == voices.default_name,
    }


async def read_upload(request: Request) -> tuple[str, bytes]:
    """The name and the recording of a form; its other fields are ignored, as `/generate` does.

    Raises:
        BadRequest, TooLarge, UnsupportedMedia: the body is not what it must be.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != MULTIPART:
        raise UnsupportedMedia(
            f"the body's Content-Type is {media_type or 'missing'}; send {MULTIPART} "
            "(in curl: -F name=anna -F file=@anna.wav)"
        )
    async with multipart_form(request) as form:
        return _name(form), await _recording(form).read()


def _name(form: FormData) -> str:
    name = _only(form, "name")
    if not isinstance(name, str):
        raise BadRequest("name came as a file; send it as text", param="name")
    return name


def _recording(form: FormData) -> UploadFile:
    file = _only(form, "file")
    if not isinstance(file, UploadFile):
        raise BadRequest("file must be a recording (in curl: -F file=@anna.wav); a text came", param="file")
    return file


def _only(form: FormData, field: str) -> UploadFile | str:
    given = form.getlist(field)
    if not given:
        raise BadRequest(f"{field} is missing; send name and file as {MULTIPART}", param=field)
    if len(given) > 1:
        raise BadRequest(f"{field} was given {len(given)} times; send it once", param=field)
    return given[0]


def _library(request: Request) -> VoiceLibrary:
    """
    Raises:
        NotReady: it is not open yet.
    """
    services: Services = request.app.state.services
    return services.voices
