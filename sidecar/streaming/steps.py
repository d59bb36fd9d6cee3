"""The step as the scheduler sees it: chunks of several streams go in, their sound comes out some time later.

What a stream needs from one step to the next is a `Playing`, which nobody looks into but the `Steps` that made it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from sidecar.streaming.chunking import Chunk

if TYPE_CHECKING:
    from sidecar.token2wav.state import OpenedVoice, StreamState
    from sidecar.token2wav.token2wav import Token2Wav

Samples = NDArray[np.float32]
Playing = TypeVar("Playing")

#: Every chunk may go here.
ANY_LANE = 0
#: Where there are two lanes: first chunks of streams that somebody listens to, and nothing else.
FIRST_CHUNK_LANE = 1


class Pending(Protocol):
    """A step under way."""

    def wait(self) -> list[Samples]:
        """Blocks, in any thread, until the step is over. Then, for each row, (S,) float32 in memory of its own; NaN
        from end to end where the row is not finite. Raises what broke the step."""


class Steps(Protocol[Playing]):
    """Computes steps, at most one in each lane at a time.

    `open`, `close` and `shareable` are called on the event loop, so they keep account and touch no device; `submit` is
    called in the one thread that computes. A stream is in one step at a time, and what `shareable` reads of a
    `Playing` no `submit` or `wait` changes while it may be asked.
    """

    @property
    def most_rows(self) -> int:
        """Streams that a step can take."""

    @property
    def cheap_rows(self) -> int:
        """Up to so many streams a step takes hardly longer than with one."""

    @property
    def lanes(self) -> int:
        """1; or 2, where first chunks need not wait until the step of the others is over."""

    def open(self, voice: OpenedVoice, /, *, seed: int) -> Playing | None:
        """Memory for a stream before its first token; None where all of it is in use at this moment."""

    def close(self, playing: Playing, /) -> None:
        """The memory may go to another stream. No step of it is under way, nor will one come."""

    def shareable(self, leader: tuple[Playing, Chunk], other: tuple[Playing, Chunk], /) -> bool:
        """May the other join a step whose most urgent row is the leader?"""

    def submit(self, rows: Sequence[tuple[Playing, Chunk]], /, *, lane: int) -> Pending:
        """Begin a step; every row is shareable with the first. It may take its time.

        A stream's step has been waited for before its next is submitted, in whichever lane that is. Where this raises,
        no stream has moved, and each may be tried again.
        """


@dataclass
class EagerPlaying:
    state: StreamState


@dataclass(frozen=True)
class Made:
    """A step that was over when it was submitted."""

    samples: list[Samples]

    def wait(self) -> list[Samples]:
        return self.samples


class EagerSteps:
    """Steps of `Token2Wav`, computed while they are submitted; chunks of one length share, once they hold equally much.

    Args:
        most_rows: streams of a step at most.
    """

    lanes = 1
    cheap_rows = 1

    def __init__(self, token2wav: Token2Wav, *, most_rows: int = 16) -> None:
        self.most_rows = most_rows
        self._token2wav = token2wav

    def open(self, voice: OpenedVoice, *, seed: int) -> EagerPlaying:
        return EagerPlaying(self._token2wav.start(voice, seed=seed))

    def close(self, playing: EagerPlaying) -> None:
        """Nothing to give back: the state goes with its stream."""

    def shareable(self, leader: tuple[EagerPlaying, Chunk], other: tuple[EagerPlaying, Chunk]) -> bool:
        return _shape(*leader) == _shape(*other)

    def submit(self, rows: Sequence[tuple[EagerPlaying, Chunk]], *, lane: int) -> Made:
        assert lane == ANY_LANE, f"there is one lane, {ANY_LANE}, not {lane}"
        tokens = torch.tensor([chunk.tokens for _, chunk in rows], dtype=torch.int64)  # (B, N)
        states = [playing.state for playing, _ in rows]
        samples, after = self._token2wav.step(tokens, states, last=rows[0][1].last)  # (B, S)
        for (playing, _), state in zip(rows, after, strict=True):
            playing.state = state
        # copies: a view that waits for its listener would keep the whole batch's sound alive
        return Made([row.copy() for row in samples.float().cpu().numpy()])


def _shape(playing: EagerPlaying, chunk: Chunk) -> tuple[int, bool, int]:
    return len(chunk.tokens), chunk.last, playing.state.held_frames
