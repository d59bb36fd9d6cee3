"""The language model over HTTP: vLLM's OpenAI server, on a unix socket or on TCP.

Ids are the truth here: `return_token_ids` brings every generated id in order, so the text in the answer is ignored.
Closing the response is how a request is aborted; vLLM frees it at once.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx
from httpx_aiohttp import AiohttpTransport

from sidecar.engine.client import Accepted, EngineRequest, ModelInfo, TokenDelta
from sidecar.engine.events import EventReader, error_message, refusal
from sidecar.errors import EngineFailed, NotReady, SidecarError

#: vLLM closes idle connections after 5 s; letting go earlier never meets one that is just being closed.
KEEPALIVE_EXPIRY_S = 4.0
CONNECT_TIMEOUT_S = 5.0
#: An engine that goes away in the middle of a reply may leave its connections open and silent.
READ_TIMEOUT_S = 300.0
PROBE_TIMEOUT_S = 2.0

CHAT_PATH = "/v1/chat/completions"


def open_engine_http(
    *,
    socket: Path | None = None,
    url: str | None = None,
    key: str | None = None,
    read_timeout_s: float = READ_TIMEOUT_S,
) -> httpx.AsyncClient:
    """An HTTP client bound to the engine: its socket or URL, its key. The caller closes it.

    Its transport is aiohttp's, which parses in C: each token comes as an event of its own, and one costs 27 us of CPU
    that way and 77 with httpx's own transport (400 events a stream, 32 streams, uvloop).
    """
    # 0 is aiohttp's word for as many as there are
    limits = httpx.Limits(max_connections=0, keepalive_expiry=KEEPALIVE_EXPIRY_S)
    return httpx.AsyncClient(
        base_url=url or "http://engine",
        # environment proxies must not come between two processes of one machine
        trust_env=False,
        transport=AiohttpTransport(uds=str(socket) if socket else None, limits=limits, trust_env=False),
        headers={"Authorization": f"Bearer {key}"} if key else {},
        timeout=httpx.Timeout(read_timeout_s, connect=CONNECT_TIMEOUT_S, pool=None),
    )


def engine_error(error: httpx.HTTPError) -> SidecarError:
    """What a transport error means: nobody there, or somebody who went away."""
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return NotReady("the language model is not answering yet; try again in a few seconds")
    if isinstance(error, httpx.TimeoutException):
        return EngineFailed("the language model fell silent; try again")
    return EngineFailed(f"the connection to the language model broke ({type(error).__name__}); try again")


class HttpEngine:
    """An `EngineClient` over a client made by `open_engine_http`.

    Args:
        more_fields: of every request to generate.
    """

    def __init__(self, http: httpx.AsyncClient, more_fields: Mapping[str, Any] = MappingProxyType({})) -> None:
        self._http = http
        self._more_fields = more_fields

    async def generate(self, request: EngineRequest) -> AsyncGenerator[Accepted | TokenDelta, None]:
        reader = EventReader()
        # in a thread: minutes of sound are tens of megabytes
        body = await asyncio.to_thread(json.dumps, {**chat_body(request), **self._more_fields})
        try:
            async with self._http.stream(
                "POST",
                CHAT_PATH,
                content=body.encode(),
                headers=headers_of(request),
            ) as response:
                if response.status_code != httpx.codes.OK:
                    raise refusal(response.status_code, error_message(await response.aread()))
                async for piece in response.aiter_raw():
                    for item in reader.feed(piece):
                        yield item
                reader.finish()
        except httpx.HTTPError as error:
            if not reader.finished:  # what breaks after the reply is whole takes nothing away
                raise engine_error(error) from error

    async def is_ready(self) -> bool:
        try:
            answer = await self._http.get("/health", timeout=PROBE_TIMEOUT_S)
        except httpx.HTTPError:
            return False
        return answer.status_code == httpx.codes.OK

    async def model_info(self) -> ModelInfo:
        try:
            answer = await self._http.get("/v1/models", timeout=PROBE_TIMEOUT_S)
        except httpx.HTTPError as error:
            raise engine_error(error) from error
        try:
            model = answer.raise_for_status().json()["data"][0]
            return ModelInfo(str(model["id"]), int(model["max_model_len"]))
        except (httpx.HTTPError, ValueError, KeyError, IndexError, TypeError) as error:
            message = f"/v1/models of the engine answered {answer.status_code}: {error_message(answer.content)}"
            raise EngineFailed(message) from error


def headers_of(request: EngineRequest) -> dict[str, str]:
    return {
        "Content-Type": "application/json",
        "Accept-Encoding": "identity",
        "X-Request-Id": request.request_id,
    }


def chat_body(request: EngineRequest) -> dict[str, Any]:
    """The chat-completions body that streams ids. It names no model: a server of one model takes that."""
    sampling = request.sampling
    return {
        "messages": list(request.messages),
        "continue_final_message": request.continue_final_message,
        "add_generation_prompt": not request.continue_final_message,
        "stream": True,
        "return_token_ids": True,
        "skip_special_tokens": False,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "repetition_penalty": sampling.repetition_penalty,
        "max_tokens": sampling.max_tokens,
        "seed": sampling.seed,
    }
