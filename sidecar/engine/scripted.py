"""A language model that says what it was told to: for tests, and for measuring everything behind the model alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence

from sidecar.engine.client import Accepted, EngineRequest, ModelInfo, TokenDelta
from sidecar.errors import SidecarError


class ScriptedEngine:
    """An `EngineClient` that answers every request with the same ids.

    Args:
        token_ids: the reply.
        finish_reason: how it ends.
        delta_tokens: ids in each delta.
        delta_s: seconds before each delta, waited with `sleep`.
        refusal: raised instead of accepting the request.
        failure: raised after `fail_after_tokens` ids.
        prompt_token_ids: reported as the prompt.
    """

    def __init__(
        self,
        token_ids: Sequence[int],
        *,
        finish_reason: str = "stop",
        delta_tokens: int = 1,
        delta_s: float = 0.0,
        refusal: SidecarError | None = None,
        failure: SidecarError | None = None,
        fail_after_tokens: int = 0,
        prompt_token_ids: Sequence[int] = (),
        max_model_len: int = 16_384,
        ready: bool = True,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self.token_ids = list(token_ids)
        self.finish_reason = finish_reason
        self.delta_tokens = delta_tokens
        self.delta_s = delta_s
        self.refusal = refusal
        self.failure = failure
        self.fail_after_tokens = fail_after_tokens
        self.prompt_token_ids = list(prompt_token_ids)
        self.max_model_len = max_model_len
        self.ready = ready
        self.sleep = sleep
        self.requests: list[EngineRequest] = []  # everything that was asked
        self.running = 0  # replies that are neither finished nor closed
        self.tokens_said = 0  # over all replies

    async def generate(self, request: EngineRequest) -> AsyncGenerator[Accepted | TokenDelta, None]:
        self.requests.append(request)
        if self.refusal is not None:
            raise self.refusal
        self.running += 1
        try:
            yield Accepted(self.prompt_token_ids)
            async for delta in self._deltas():
                yield delta
        finally:
            self.running -= 1

    async def _deltas(self) -> AsyncIterator[TokenDelta]:
        ids, last = self.token_ids, self.finish_reason
        for start in range(0, max(len(ids), 1), self.delta_tokens):
            await self.sleep(self.delta_s)
            if self.failure is not None and start >= self.fail_after_tokens:
                raise self.failure
            end = start + self.delta_tokens
            self.tokens_said += len(ids[start:end])
            yield TokenDelta(ids[start:end], last if end >= len(ids) else None)

    async def is_ready(self) -> bool:
        return self.ready

    async def model_info(self) -> ModelInfo:
        return ModelInfo("scripted", self.max_model_len)
