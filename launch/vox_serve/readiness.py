"""Whether a server is ready, asked over HTTP: the one that was started, and not another that answers in its place."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from contextlib import suppress
from http.client import HTTPException

from sidecar.settings import PROCESS_ID_HEADER


def what_is_missing(ready_url: str, process_id: int) -> str | None:
    """None when this process answers 200; else what the answer says is missing, empty where nobody answers yet."""
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(ready_url, timeout=2) as answer:
            # between the launcher's look at the port and the sidecar's, somebody else's server may have taken it
            ours = answer.headers.get(PROCESS_ID_HEADER) == str(process_id)
            return None if ours else f"another server answers at {ready_url}"
    except urllib.error.HTTPError as refusal:
        with suppress(OSError, HTTPException, ValueError, KeyError, TypeError):
            return str(json.loads(refusal.read())["error"]["message"])
        return f"{ready_url} answers {refusal.code}"
    except (OSError, HTTPException):
        return ""
