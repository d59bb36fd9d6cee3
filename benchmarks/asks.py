"""What is asked of which endpoint: one function each, and how its reply is read."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import httpx
from heard import WAV_HEADER_BYTES, Sound, Words
from listener import Ask

TEXT = (
    "Good evening, and welcome. Tonight we take our time: we look at the weather of the coming days, we hear what the "
    "neighbours have planted in their gardens, and at the end there is a story for everyone who is still awake."
)
HEADER_BYTES = {"wav": WAV_HEADER_BYTES, "pcm": 0}


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What all requests of a run have in common."""

    text: str = TEXT
    recording: Path | None = None
    voices: tuple[str, ...] = ()  # taken in turn
    response_format: str = "wav"
    max_tokens: tuple[int, int] | None = None  # drawn for each, from the first to the second


def streamed(wanted: Wanted, number: int) -> Ask:
    """POST /generate, sound as it is made."""
    return _generate(wanted, number, streaming=True)


def whole(wanted: Wanted, number: int) -> Ask:
    """POST /generate, the sound in one piece."""
    return _generate(wanted, number, streaming=False)


def chat(wanted: Wanted, number: int) -> Ask:
    """POST /v1/chat/completions, a stream of text."""
    content: list[dict[str, Any]] = [{"type": "text", "text": _words(wanted, number)}]
    if wanted.recording is not None:
        sound = base64.b64encode(_file(wanted.recording)).decode()
        form = wanted.recording.suffix.removeprefix(".")
        content.insert(0, {"type": "input_audio", "input_audio": {"data": sound, "format": form}})
    body = {"messages": [{"role": "user", "content": content}], "stream": True} | _max_tokens(wanted, number)
    return Ask("/v1/chat/completions", "application/json", json.dumps(body).encode(), Words)


ASKS: dict[str, Callable[[Wanted, int], Ask]] = {"streamed": streamed, "whole": whole, "chat": chat}


def _generate(wanted: Wanted, number: int, *, streaming: bool) -> Ask:
    fields = {"text": _words(wanted, number), "streaming": streaming, "response_format": wanted.response_format}
    fields |= _max_tokens(wanted, number)
    if wanted.voices:
        fields["voice"] = wanted.voices[number % len(wanted.voices)]
    heard = partial(Sound, HEADER_BYTES[wanted.response_format])
    if wanted.recording is None:
        return Ask("/generate", "application/json", json.dumps(fields).encode(), heard)
    files = {"audio": (wanted.recording.name, _file(wanted.recording))}
    form = httpx.Request("POST", "http://unsent", data=fields, files=files)
    return Ask("/generate", form.headers["content-type"], form.read(), heard)


@cache
def _file(path: Path) -> bytes:
    return path.read_bytes()


def _words(wanted: Wanted, number: int) -> str:
    """No two requests are the same: vLLM remembers the beginnings of prompts."""
    return f"{number}. {wanted.text}"


def _max_tokens(wanted: Wanted, number: int) -> dict[str, Any]:
    """Replies of one length that began together would end together, and begin together again, for ever."""
    if wanted.max_tokens is None:
        return {}
    return {"max_tokens": random.Random(number).randint(*wanted.max_tokens)}
