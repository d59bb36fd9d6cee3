"""Whose turn it is: which waiting chunks share the next step. Pure; who waits, and since when, the streams say."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sidecar.streaming.chunking import Chunk, ChunkPlan
from sidecar.streaming.steps import Steps
from sidecar.streaming.stream import SpeechStream
from sidecar.timebase import tokens_to_seconds

Row = tuple[SpeechStream, Chunk]


@dataclass(frozen=True)
class Turns:
    """The stream that is due first leads the step, and others join it in their order, as far as they can share it.

    Every row makes a step slower. So where the leader hurries, those stay out that are far ahead of their listeners,
    or are wanted as a whole and have been served lately; else they fill it up.

    Args:
        far_ahead_s: sound that a stream has beyond now. Who has less than half of it hurries.
        batch_wait_s: how long a chunk may wait for others to share with, while nobody is nearer to the end of his
            sound than `far_ahead_s`: steps of few rows cost nearly as much as steps of many.
    """

    steps: Steps[Any]
    far_ahead_s: float
    batch_wait_s: float = 0.0

    @classmethod
    def of(cls, steps: Steps[Any], plan: ChunkPlan, batch_wait_s: float) -> Turns:
        """Far ahead is whoever has a whole chunk's sound left."""
        return cls(steps, tokens_to_seconds(plan.chunk_tokens), batch_wait_s)

    def next_step(self, waiting: Iterable[SpeechStream], now: float) -> list[Row]:
        """Of streams that are ready and have their memory; empty if there are none."""
        in_order = sorted(waiting, key=SpeechStream.due_at)
        if not in_order:
            return []
        leader = in_order[0]
        rows = [(leader, _chunk(leader))]
        hurries = leader.due_at() - now < self.far_ahead_s / 2
        for stream in in_order[1:]:
            if len(rows) == self.steps.most_rows or (hurries and self._far_ahead(stream, now)):
                break
            row = (stream, _chunk(stream))
            if self.steps.shareable((leader.playing, rows[0][1]), (stream.playing, row[1])):
                rows.append(row)
        return rows

    def wait_s(self, waiting: Sequence[SpeechStream], running: int, now: float) -> float:
        """How long to wait for others before the next step; 0 where somebody is due, or nobody else can come.

        Args:
            running: streams that have not ended, the waiting ones included.
        """
        if not waiting or len(waiting) >= min(running, self.steps.most_rows):
            return 0.0
        if not all(self._far_ahead(stream, now) for stream in waiting):
            return 0.0
        return max(0.0, min(stream.ready_since for stream in waiting) + self.batch_wait_s - now)

    def _far_ahead(self, stream: SpeechStream, now: float) -> bool:
        return stream.due_at() - now > self.far_ahead_s


def _chunk(stream: SpeechStream) -> Chunk:
    chunk = stream.chunker.peek()
    assert chunk is not None, "a stream came to its turn without a chunk"
    return chunk
