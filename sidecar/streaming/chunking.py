"""Which speech tokens make the next chunk. Pure: the same tokens make the same chunks, whenever they come."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class ChunkPlan:
    """Sizes of the chunks by their place in the stream: a small first one, each at most twice the one before."""

    first_chunk_tokens: int
    chunk_tokens: int

    def new_tokens(self, chunk_index: int) -> int:
        # beyond 2 ** 32 every first chunk has long grown to the steady size
        return min(self.first_chunk_tokens << min(chunk_index, 32), self.chunk_tokens)


@dataclass(frozen=True)
class Chunk:
    """The tokens of one step. Unless `last`, they end with the look-ahead, which comes again in the next chunk."""

    tokens: tuple[int, ...]
    new_tokens: int
    last: bool


class Chunker:
    """Cuts one stream: `feed` tokens as they come, `finish` at their end, `take` chunks while there are any.

    A chunk of n new tokens is ready with n + look-ahead tokens, whether or not the end is known by then; what is left
    when the end is known and fewer are there is the last chunk. So no border depends on when a token or the end came.
    """

    def __init__(self, plan: ChunkPlan, *, lookahead_tokens: int) -> None:
        self._plan = plan
        self._lookahead_tokens = lookahead_tokens
        self._waiting: list[int] = []
        self._chunks_taken = 0
        self._finished = False
        self._done = False

    def feed(self, tokens: Iterable[int]) -> None:
        assert not self._finished, "tokens came after the end of their stream"
        self._waiting.extend(tokens)

    def finish(self) -> None:
        self._finished = True
        # a last chunk of nothing happens only to a stream without any token: others keep their look-ahead
        self._done = self._done or not self._waiting

    @property
    def done(self) -> bool:
        """Every token has been taken, and no more will come."""
        return self._done

    def peek(self) -> Chunk | None:
        """The next chunk if it is ready: its length and `last` say which streams may share a step with it."""
        if self._done:
            return None
        new_tokens = self._plan.new_tokens(self._chunks_taken)
        needed = new_tokens + self._lookahead_tokens
        if len(self._waiting) >= needed:
            return Chunk(tuple(self._waiting[:needed]), new_tokens, last=False)
        if self._finished:
            return Chunk(tuple(self._waiting), len(self._waiting), last=True)
        return None

    def take(self) -> Chunk:
        chunk = self.peek()
        assert chunk is not None, "a chunk was taken that is not ready"
        del self._waiting[: chunk.new_tokens]
        self._chunks_taken += 1
        self._done = chunk.last
        return chunk
