"""POST /generate: the form that vox-serve clients send."""

from __future__ import annotations

import logging
from urllib.parse import parse_qsl

from starlette.datastructures import FormData, UploadFile
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from sidecar.api.forms import multipart_form
from sidecar.api.hang_up import quiet_when_hung_up, unless_hung_up
from sidecar.api.replies import StreamedSpeech, whole_speech
from sidecar.api.services import Services
from sidecar.audio.encoding import Encoding
from sidecar.errors import BadRequest, SidecarError, UnsupportedMedia
from sidecar.requests import SpeechRequest
from sidecar.speech import Speech

logger = logging.getLogger(__name__)

JSON = "application/json"
MULTIPART = "multipart/form-data"
URLENCODED = "application/x-www-form-urlencoded"
#: As many as Starlette takes in a multipart form.
_MAX_FORM_FIELDS = 1000
_SHOWN_NAMES, _SHOWN_NAME_CHARACTERS = 10, 50


async def generate(request: Request) -> Response:
    services: Services = request.app.state.services
    wanted, speech = await open_speech(request, services)
    encoding = Encoding(wanted.response_format, services.encoding_thread, whole=not wanted.streaming)
    if wanted.streaming:
        return StreamedSpeech(speech, encoding)
    async with speech:
        with encoding:
            return await unless_hung_up(request.receive, whole_speech(speech, encoding))


ROUTES = [Route("/generate", quiet_when_hung_up(generate), methods=["POST"])]


async def open_speech(request: Request, services: Services) -> tuple[SpeechRequest, Speech]:
    """Read the request and begin to answer it; what is refused is counted and logged here."""
    request_id = request.state.request_id
    try:
        wanted = await read_request(request)
        if wanted.ignored_fields:
            logger.info("unknown fields are ignored: %s request_id=%s", _shown(wanted.ignored_fields), request_id)
        opening = services.pipeline.open(wanted, request_id)
        return wanted, await unless_hung_up(request.receive, opening)
    except SidecarError as error:
        services.metrics.requests.add(label_value=error.code or error.type)
        logger.info("speech refused: request_id=%s status=%d %s", request_id, error.status, error.message)
        raise
    except ClientDisconnect:
        services.metrics.requests.add(label_value="hang_up")
        logger.info("speech ended: request_id=%s ended=hang_up before its beginning", request_id)
        raise


async def read_request(request: Request) -> SpeechRequest:
    """
    Raises:
        BadRequest, TooLarge, UnsupportedMedia: the body is not what it must be.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    encoding = request.headers.get("content-encoding", "identity")
    if media_type not in (JSON, MULTIPART, URLENCODED):
        raise UnsupportedMedia(
            f"the body's Content-Type is {media_type or 'missing'}; send {JSON}, {MULTIPART} or {URLENCODED}"
        )
    if encoding.lower() != "identity":
        raise UnsupportedMedia(f"the body's Content-Encoding is {encoding}; send it uncompressed")
    if media_type == JSON:
        return SpeechRequest.from_json(await request.body())
    if media_type == URLENCODED:
        return _from_urlencoded(await request.body())
    async with multipart_form(request) as form:
        return await _from_form(form)


def _from_urlencoded(body: bytes) -> SpeechRequest:
    if body.lstrip()[:1] == b"{":
        # `curl -d '{...}'` without a header calls its JSON a form; no form begins like this
        return SpeechRequest.from_json(body)
    try:
        # not Starlette's parser: `curl -d 'text=é'` sends plain UTF-8, which that reads as Latin-1
        fields = parse_qsl(body.decode(), keep_blank_values=True, errors="strict", max_num_fields=_MAX_FORM_FIELDS)
    except ValueError as error:
        raise BadRequest(f"the form cannot be read: {error}") from error
    return SpeechRequest.from_form(fields)


async def _from_form(form: FormData) -> SpeechRequest:
    texts = [(name, value) for name, value in form.multi_items() if isinstance(value, str)]
    files = [
        (name, await value.read())
        for name, value in form.multi_items()
        # a page's form sends a file without name and bytes where none was chosen
        if isinstance(value, UploadFile) and (value.filename or value.size)
    ]
    return SpeechRequest.from_form(texts, files)


def _shown(names: tuple[str, ...]) -> str:
    shown = ", ".join(repr(name[:_SHOWN_NAME_CHARACTERS]) for name in names[:_SHOWN_NAMES])
    more = len(names) - _SHOWN_NAMES
    return f"{shown} and {more} more" if more > 0 else shown
