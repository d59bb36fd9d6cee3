"""`POST /v1/audio/transcriptions` and `/v1/audio/translations`: vLLM's own endpoints on our port.

vLLM answers them in JSON alone; the other formats that this model can fill are made of that here.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from sidecar.api.forms import multipart_form
from sidecar.api.hang_up import quiet_when_hung_up
from sidecar.api.relay import Relayed, ask, whole_body
from sidecar.api.services import Services
from sidecar.audio.decode import decode_recording, to_mono16k, wav16k_bytes
from sidecar.errors import BadRequest, EngineFailed

Fields = dict[str, list[str]]

TRANSLATIONS = "/v1/audio/translations"
FORMATS = ("json", "text", "verbose_json")

_NO_TIMES = "this model says no times; leave it out"
#: Form fields that ask for what the model cannot give, or reach past its own prompt.
REFUSED_FIELDS = {
    "timestamp_granularities[]": _NO_TIMES,
    "timestamp_granularities": _NO_TIMES,
    "include[]": "this server gives no log probabilities of transcriptions; leave it out",
    "vllm_xargs": "this server does not accept it; leave it out",
}

#: As the authors transcribe: greedy, without the penalty that the other endpoints default to, and at most so many
#: tokens for each 25 s, so that a model that repeats itself comes to an end.
SAMPLING = {"temperature": ["0"], "repetition_penalty": ["1"], "max_completion_tokens": ["2048"]}

#: ISO 639's word for a language that nobody has named: the model does not say which one it hears.
UNDETERMINED = "und"


@quiet_when_hung_up
async def transcriptions(request: Request) -> Response:
    """A form with a recording in `file`; what the other fields may be, vLLM says."""
    services: Services = request.app.state.services
    async with multipart_form(request) as form:
        recording = form.get("file")
        if not isinstance(recording, UploadFile):
            raise BadRequest("file must be a recording, sent as multipart/form-data", param="file")
        fields = await asyncio.to_thread(read_fields, form, services)  # a form may have a thousand
        wanted = answer_format(fields)
        wav, seconds = await asyncio.to_thread(decoded, await recording.read(), services)
    translates = request.url.path == TRANSLATIONS
    data = {**SAMPLING, **fields, **({"language": target(fields)} if translates else {}), "response_format": ["json"]}
    answer = await ask(request, {"data": data, "files": {"file": ("recording.wav", wav, "audio/wav")}})
    if wanted == "json" or answer.status_code != 200 or streamed(answer):
        return Relayed(answer)
    reply = read_reply(await whole_body(request, answer))
    if wanted == "text":
        return PlainTextResponse(reply["text"])
    task = "translate" if translates else "transcribe"
    language = data.get("language", [UNDETERMINED])[0]
    return JSONResponse({"task": task, "language": language, "duration": seconds, **reply})


def read_fields(form: FormData, services: Services) -> Fields:
    """Every field but the recording, empty ones left out, in the form that they are sent on.

    Raises:
        BadRequest: a field that is refused, too long, or names a control token.
    """
    fields: Fields = {}
    for name, value in form.multi_items():
        if name == "file" or value == "":
            continue
        if name in REFUSED_FIELDS:
            raise BadRequest(f"{name}: {REFUSED_FIELDS[name]}", param=name, code="field_not_accepted")
        if not isinstance(value, str):
            raise BadRequest(f"{name} is a file; only file may be one", param=name)
        longest = services.settings.limits.max_text_characters
        if len(value) > longest:
            raise BadRequest(f"{name} has {len(value)} characters; at most {longest} are allowed", param=name)
        services.text.require_plain(value, name)
        fields.setdefault(name, []).append(value)
    return fields


def answer_format(fields: Fields) -> str:
    """
    Raises:
        BadRequest: a format that the model cannot fill, or one that cannot be streamed.
    """
    (wanted, *_) = fields.get("response_format", ["json"])
    if wanted not in FORMATS:
        raise BadRequest(
            f"response_format is {wanted!r}; this model says no times and no speakers, so choose one of "
            f"{', '.join(FORMATS)}",
            param="response_format",
        )
    streams = fields.get("stream", ["false"])[0].lower() not in ("false", "0", "no", "off", "n", "f")
    if streams and wanted == "verbose_json":
        raise BadRequest("verbose_json cannot be streamed; leave out stream, or choose json", param="response_format")
    return wanted


def target(fields: Fields) -> list[str]:
    """What a translation goes to, as its `language`: vLLM joins the parts of a long one as that language is written."""
    return fields.get("to_language", ["en"])


def decoded(recording: bytes, services: Services) -> tuple[bytes, float]:
    """The recording as the engine gets it, and its length in seconds. Takes a thread: it may be long.

    Raises:
        UnsupportedMedia, UnusableAudio: it cannot be used, or is too long.
    """
    heard = decode_recording(recording, max_seconds=services.settings.limits.max_recording_seconds)
    return wav16k_bytes(to_mono16k(heard)), heard.seconds


def streamed(answer: httpx.Response) -> bool:
    return str(answer.headers.get("content-type")).startswith("text/event-stream")


def read_reply(body: bytes) -> dict[str, Any]:
    """vLLM's JSON: the text and, of a transcription, the usage.

    Raises:
        EngineFailed: it is none.
    """
    try:
        reply: dict[str, Any] = json.loads(body)
        return {"text": str(reply["text"]), **({"usage": reply["usage"]} if reply.get("usage") else {})}
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise EngineFailed("the language model's server answered with something that is no transcription") from error


ROUTES = [
    Route("/v1/audio/transcriptions", transcriptions, methods=["POST"]),
    Route(TRANSLATIONS, transcriptions, methods=["POST"]),
]
