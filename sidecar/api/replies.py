"""Answers: errors as OpenAI error bodies, and speech, whole or as it is made."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from urllib.parse import quote

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from sidecar.api.hang_up import unless_hung_up
from sidecar.api.middleware import REQUEST_ID_HEADER
from sidecar.audio.encoding import Encoding
from sidecar.errors import BadRequest, EncodingFailed, SidecarError
from sidecar.speech import Speech

logger = logging.getLogger(__name__)

#: Headers share a server's or a proxy's limit of 8 KiB, often.
MAX_TRANSCRIPT_BYTES = 6000


def error_response(error: SidecarError, **beside: object) -> JSONResponse:
    """`beside` the error, what a program may read of the matter."""
    retry = {} if error.retry_after_s is None else {"Retry-After": str(error.retry_after_s)}
    return error_body(
        error.status, error.message, error.type, param=error.param, code=error.code, headers=retry, beside=beside
    )


def error_body(
    status: int,
    message: str,
    type: str,
    *,
    param: str | None = None,
    code: str | None = None,
    headers: dict[str, str] | None = None,
    beside: Mapping[str, object] | None = None,
) -> JSONResponse:
    body = {"error": {"message": message, "type": type, "param": param, "code": code}, **(beside or {})}
    return JSONResponse(body, status_code=status, headers=headers)


async def on_sidecar_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, SidecarError), "registered for SidecarError alone"
    return error_response(error)


async def on_http_exception(request: Request, error: Exception) -> Response:
    """What the router refuses: no such route, not this method; and forms that cannot be read."""
    assert isinstance(error, HTTPException), "registered for HTTPException alone"
    message = f"{request.method} {request.url.path}: {error.detail}"
    return error_body(error.status_code, message, BadRequest.type, headers=dict(error.headers or {}))


async def on_unexpected_error(request: Request, _: Exception) -> Response:
    """A fault of ours. This answer is made outside of the middleware, so it brings its request id itself."""
    request_id = request.state.request_id
    # the server logs what happened, but knows no request id
    logger.error("%s %s failed; what follows says why: request_id=%s", request.method, request.url.path, request_id)
    headers = {REQUEST_ID_HEADER: request_id}
    words = "the server made a mistake; its log says more, and this answer's X-Request-Id finds the place"
    return error_body(500, words, SidecarError.type, headers=headers)


def speech_headers(speech: Speech, encoding: Encoding) -> dict[str, str]:
    return {
        "X-Seed": str(speech.seed),
        "Content-Disposition": f'attachment; filename="speech-{speech.request_id[:8]}{encoding.suffix}"',
    }


def transcript_headers(transcript: str) -> dict[str, str]:
    """The text percent-encoded, cut between two characters where it is too long for a header."""
    quoted, kept = "", transcript.strip()
    for character in kept:
        piece = quote(character, safe="")
        if len(quoted) + len(piece) > MAX_TRANSCRIPT_BYTES:
            return {"X-Transcript": quoted, "X-Transcript-Truncated": "1"}
        quoted += piece
    return {"X-Transcript": quoted}


async def encoded(speech: Speech, encoding: Encoding) -> AsyncIterator[bytes]:
    """The container's header, which waits for no sound, then piece by piece what is made.

    Raises:
        SidecarError: the engine, token2wav or the encoder failed on the way.
    """
    try:
        yield await encoding.header()
        async for samples in speech.samples():
            yield await encoding.feed(samples)
        yield await encoding.finish()
    except EncodingFailed as error:
        speech.fail(error)
        raise


async def whole_speech(speech: Speech, encoding: Encoding) -> Response:
    """All of it in one answer, with its true length.

    Raises:
        SidecarError: the engine, token2wav or the encoder failed on the way.
    """
    sound = b"".join([piece async for piece in encoded(speech, encoding)])
    headers = {
        **speech_headers(speech, encoding),
        **transcript_headers(speech.transcript),
        "X-Finish-Reason": speech.finish_reason,
    }
    return Response(sound, media_type=encoding.media_type, headers=headers)


class StreamedSpeech(Response):
    """Sends the container's header at once, then each piece of sound as it is made.

    After an error the body ends without its closing chunk: the server then closes the connection, so the client sees
    that the speech was cut short.
    """

    def __init__(self, speech: Speech, encoding: Encoding) -> None:
        self._speech = speech
        self._encoding = encoding
        self.status_code = 200
        self.media_type = encoding.media_type
        self.background = None
        self.init_headers(speech_headers(speech, encoding))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        async with self._speech:
            with self._encoding:
                pieces = encoded(self._speech, self._encoding)
                # where there is no such encoder nothing has been sent yet, so that becomes an error answer
                header = await anext(pieces)
                # what happened is in the speech's own line of the log
                with suppress(ClientDisconnect, SidecarError):
                    await unless_hung_up(receive, self._send(header, pieces, send))

    async def _send(self, header: bytes, pieces: AsyncIterator[bytes], send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        if header:
            await send({"type": "http.response.body", "body": header, "more_body": True})
        async for piece in pieces:
            if piece:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        # first, so that a client that has heard the end finds the slot free
        await self._speech.end()
        await send({"type": "http.response.body", "body": b"", "more_body": False})
