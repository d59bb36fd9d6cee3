"""Whether a server is ready, asked over HTTP: the one that was started, and not another that answers in its place."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from contextlib import suppress
from dataclasses import dataclass
from email.message import Message
from http.client import HTTPException

from sidecar.settings import ENGINE_PART, PROCESS_ID_HEADER


@dataclass(frozen=True, kw_only=True)
class Readiness:
    """How far a server is.

    `missing` is in words, empty where nobody answers yet; `parts` are the names of what this server itself, and no
    other, says it misses, in the order in which it will find them.
    """

    ready: bool = False
    missing: str = ""
    parts: tuple[str, ...] = ()

    @property
    def misses_only_the_engine(self) -> bool:
        """And what comes after the engine: it has taken of a GPU's memory all that it will."""
        return self.parts[:1] == (ENGINE_PART,)


def readiness(ready_url: str, process_id: int) -> Readiness:
    """What this process answers. Between a look at a port and its use, somebody else's server may have taken it."""
    another = Readiness(missing=f"another server answers at {ready_url}")
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(ready_url, timeout=2) as answer:
            return Readiness(ready=True) if _is_from(process_id, answer.headers) else another
    except urllib.error.HTTPError as refusal:
        with suppress(OSError, HTTPException, ValueError, KeyError, TypeError):
            said = json.loads(refusal.read())
            words = str(said["error"]["message"])
            parts = said.get("missing", ()) if _is_from(process_id, refusal.headers) else ()
            return Readiness(missing=words, parts=tuple(map(str, parts)))
        return Readiness(missing=f"{ready_url} answers {refusal.code}")
    except (OSError, HTTPException):
        return Readiness()


def _is_from(process_id: int, headers: Message) -> bool:
    return headers.get(PROCESS_ID_HEADER) == str(process_id)
