"""Our chat endpoint and its neighbours before a stub or a real vLLM, and what to send through them."""

from __future__ import annotations

import base64
import io
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import relay_front
import soundfile
from starlette.requests import Request
from starlette.responses import Response
from stub_engine import StubEngine, stub_engine

from sidecar.api import chat, openai
from step_audio_vllm.spoken_turn import token_ids_of

CHAT = "/v1/chat/completions"
TEXT = relay_front.TEXT
ROUTES = [*chat.ROUTES, *openai.ROUTES]


def front(engine_url: str, **settings: Any) -> AbstractContextManager[str]:
    return relay_front.front(ROUTES, engine_url, **settings)


def answering(make: Callable[[], Response]) -> Callable[[Request], Awaitable[Response]]:
    async def answer(_: Request) -> Response:
        return make()

    return answer


@contextmanager
def front_of(answer: Callable[[], Response], **settings: Any) -> Iterator[tuple[str, StubEngine]]:
    with stub_engine(answering(answer)) as engine, front(engine.url, **settings) as url:
        yield url, engine


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def sound(data: bytes) -> dict[str, Any]:
    """A recording whose client names the wrong format: the bytes themselves are looked at."""
    return {"type": "input_audio", "input_audio": {"data": base64.b64encode(data).decode(), "format": "mp3"}}


def ids_in_item(part: dict[str, Any]) -> list[int]:
    """The ids of a spoken turn, as the engine gets it."""
    samples, rate_hz = soundfile.read(io.BytesIO(base64.b64decode(part["input_audio"]["data"])), dtype="float32")
    found = token_ids_of(samples)
    assert (rate_hz, samples.ndim) == (16_000, 1) and found is not None
    return found


def wav(seconds: float = 1.0, rate_hz: int = 16_000, channels: int = 1) -> bytes:
    time_s = np.arange(int(seconds * rate_hz)) / rate_hz
    tone = np.sin(2 * np.pi * 440 * time_s).astype(np.float32)[:, None].repeat(channels, 1) * 0.3
    data = io.BytesIO()
    soundfile.write(data, tone, rate_hz, format="WAV", subtype="PCM_16")
    return data.getvalue()
