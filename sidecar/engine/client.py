"""What the sidecar asks of a language model, whoever runs it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn. `top_k` -1 is off."""

    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    max_tokens: int
    seed: int


@dataclass(frozen=True)
class EngineRequest:
    """One reply to be generated: chat messages in OpenAI's form, the last of which may be left open."""

    request_id: str
    messages: Sequence[dict[str, Any]]
    sampling: Sampling
    continue_final_message: bool = True


@dataclass(frozen=True)
class Accepted:
    """The engine has taken the request: no refusal can follow, only a failure."""

    prompt_token_ids: Sequence[int] = field(repr=False)


@dataclass(frozen=True)
class TokenDelta:
    """Some more generated ids, in order; `finish_reason` is set on the last one ("stop", "length")."""

    token_ids: Sequence[int]
    finish_reason: str | None = None


@dataclass(frozen=True)
class ModelInfo:
    """The model behind the engine: the name it goes by, and how many tokens prompt and reply may have together."""

    name: str
    max_model_len: int


class EngineClient(Protocol):
    def generate(self, request: EngineRequest) -> AsyncGenerator[Accepted | TokenDelta, None]:
        """Yield `Accepted` once, then deltas until one carries a finish reason.

        Closing the iterator (`aclose`) aborts the request in the engine.

        Raises:
            BadRequest: the engine refuses it (too long, a field out of range).
            NotReady, EngineFailed: it is not there, or went away.
        """
        ...

    async def is_ready(self) -> bool:
        """Whether it would take a request now; never raises for an engine that is not there."""
        ...

    async def model_info(self) -> ModelInfo:
        """
        Raises:
            NotReady, EngineFailed: it is not there, or its answer is no answer.
        """
        ...
