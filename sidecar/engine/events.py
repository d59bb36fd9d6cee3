"""The server-sent events of vLLM's streamed chat completion -> `Accepted` and `TokenDelta`; no I/O.

Each event is parsed once. Of its many fields only ids and the finish reason matter here.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

from sidecar.engine.client import Accepted, TokenDelta
from sidecar.errors import BadRequest, EngineFailed, SidecarError

log = logging.getLogger(__name__)

#: Finish reasons of a reply that came to its end; others ("abort", "error") are failures.
GOOD_ENDS = frozenset({"stop", "length", "tool_calls"})


def error_message(body: bytes) -> str:
    """The message in an OpenAI error body, else the body itself."""
    try:
        message = json.loads(body)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = body.decode(errors="replace").strip()[:500]
    return str(message)


def refusal(status: int, message: str) -> SidecarError:
    """An answer that is no 200, or an error event, as an error of ours."""
    if status in (400, 413, 422):
        return BadRequest(message)
    log.error("the engine answered %d: %s", status, message)
    return EngineFailed(f"the language model failed ({status}: {message}); try again")


class EventReader:
    """Reads one stream: `feed` bytes cut anywhere, then `finish`.

    What follows the finish reason is read over, so that the connection can be read empty and used again.
    """

    def __init__(self) -> None:
        self._rest = b""  # a line whose end has not come yet
        self._accepted = False
        self.finished = False  # the finish reason has come: the reply is whole

    def feed(self, piece: bytes) -> Iterator[Accepted | TokenDelta]:
        """
        Raises:
            BadRequest: an error event that blames the request, before anything was generated.
            EngineFailed: any other error event, an aborted request, or an event that makes no sense.
        """
        *lines, self._rest = (self._rest + piece).split(b"\n")
        for line in lines:
            # a line that begins with ":" is a comment, sent to keep the connection alive
            if not self.finished and line.startswith(b"data:"):
                data = line[5:].strip()
                if data != b"[DONE]":
                    yield from self._read(data)

    def finish(self) -> None:
        """The stream is over.

        Raises:
            EngineFailed: it had no finish reason.
        """
        if not self.finished:
            raise EngineFailed("the language model's reply broke off without saying why; try again")

    def _read(self, data: bytes) -> Iterator[Accepted | TokenDelta]:
        event = self._parse(data)
        if not self._accepted:
            self._accepted = True
            yield Accepted(event.get("prompt_token_ids") or [])
        for choice in event.get("choices") or []:
            ids, reason = choice.get("token_ids") or [], choice.get("finish_reason")
            if reason is not None and reason not in GOOD_ENDS:
                raise EngineFailed(f"the language model gave the reply up ({reason}); try again")
            if ids or reason is not None:
                self.finished = reason is not None
                yield TokenDelta(ids, reason)

    def _parse(self, data: bytes) -> dict[str, Any]:
        try:
            event = json.loads(data)
        except ValueError as error:
            raise EngineFailed(f"the language model sent an event that is no JSON: {data[:100]!r}") from error
        if not isinstance(event, dict):
            raise EngineFailed(f"the language model sent an event that is no object: {data[:100]!r}")
        if "error" in event:
            code = event["error"].get("code") if isinstance(event["error"], dict) else None
            status = code if isinstance(code, int) and not self._accepted else 500
            raise refusal(status, error_message(data))
        return event
