"""Which speech tokens make the next chunk. Pure: the same tokens make the same chunks, whenever they come."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class ChunkPlan:
    """Sizes of the chunks by their place in the stream: small first ones, then each half as large again.

    While a chunk plays, the next one's tokens have to come. Of the first chunk's sound 160 ms are withheld, so that the
    second has the least time: it is no larger.
    """

    first_chunk_tokens: int
    chunk_tokens: int

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """New tokens of the first chunk, the second ... and all from the last size on."""
        sizes = [self.first_chunk_tokens, self.first_chunk_tokens]
        while sizes[-1] < self.chunk_tokens:
            sizes.append(min(max(sizes[-1] * 3 // 2, sizes[-1] + 1), self.chunk_tokens))
        return tuple(sizes)

    def new_tokens(self, chunk_index: int) -> int:
        return self.sizes[min(chunk_index, len(self.sizes) - 1)]


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
        self._needed = self._next_needs()
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

    @property
    def at_start(self) -> bool:
        """No chunk has been taken yet."""
        return self._chunks_taken == 0

    @property
    def ready(self) -> bool:
        """There is a chunk. Asked for every token that comes, so it costs nothing."""
        return not self._done and (self._finished or len(self._waiting) >= self._needed)

    def peek(self) -> Chunk | None:
        """The next chunk if it is ready: its length and `last` say which streams may share a step with it."""
        if not self.ready:
            return None
        waiting, needed = self._waiting, self._needed
        if len(waiting) >= needed:
            return Chunk(tuple(waiting[:needed]), needed - self._lookahead_tokens, last=False)
        return Chunk(tuple(waiting), len(waiting), last=True)

    def take(self) -> Chunk:
        chunk = self.peek()
        assert chunk is not None, "a chunk was taken that is not ready"
        del self._waiting[: chunk.new_tokens]
        self._chunks_taken += 1
        self._needed = self._next_needs()
        self._done = chunk.last
        return chunk

    def _next_needs(self) -> int:
        return self._plan.new_tokens(self._chunks_taken) + self._lookahead_tokens
