"""Whose turn it is: which waiting chunks share the next step. Pure; who waits, and since when, the streams say."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sidecar.streaming.chunking import Chunk
from sidecar.streaming.steps import Steps
from sidecar.streaming.stream import SpeechStream

Row = tuple[SpeechStream, Chunk]

#: Who has less sound left than this is served at once: a step of all rows that hurry, twice over.
HURRY_S = 0.2


@dataclass(frozen=True)
class Turns:
    """The stream that is due first leads the step, and others join it in their order, as far as they can share it.

    Every row makes a step slower. So where the leader hurries, others join who hurry too; those that are ahead of their
    listeners, or are wanted as a whole and have been served lately, only as far as they cost next to nothing.

    Args:
        batch_wait_s: how long a chunk may wait for others to share with, while nobody hurries.
    """

    steps: Steps[Any]
    batch_wait_s: float = 0.0

    def next_step(self, waiting: Iterable[SpeechStream], now: float) -> list[Row]:
        """Of streams that are ready and have their memory; empty if there are none."""
        in_order = sorted(waiting, key=SpeechStream.due_at)
        if not in_order:
            return []
        leader = in_order[0]
        rows = [(leader, _chunk(leader))]
        for stream in in_order[1:]:
            if len(rows) == self.steps.most_rows:
                break
            if len(rows) >= self.steps.cheap_rows and _hurries(leader, now) and not _hurries(stream, now):
                break
            row = (stream, _chunk(stream))
            if self.steps.shareable((leader.playing, rows[0][1]), (stream.playing, row[1])):
                rows.append(row)
        return rows

    def wait_s(self, waiting: Sequence[SpeechStream], running: int, now: float) -> float:
        """How long to wait for others before the next step; 0 where somebody hurries, or nobody else can come.

        Args:
            running: streams that have not ended, the waiting ones included.
        """
        if not waiting or len(waiting) >= min(running, self.steps.most_rows):
            return 0.0
        until_somebody_hurries = min(stream.due_at() for stream in waiting) - HURRY_S
        until_it_is_enough = min(stream.ready_since for stream in waiting) + self.batch_wait_s
        return max(0.0, min(until_somebody_hurries, until_it_is_enough) - now)


def _hurries(stream: SpeechStream, now: float) -> bool:
    return stream.due_at() - now < HURRY_S


def _chunk(stream: SpeechStream) -> Chunk:
    chunk = stream.chunker.peek()
    assert chunk is not None, "a stream came to its turn without a chunk"
    return chunk
