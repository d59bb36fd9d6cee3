"""One listener: the chunks of its speech, the sound that waits for it, and when that sound runs out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sidecar.errors import SidecarError
from sidecar.streaming.chunking import Chunker
from sidecar.timebase import samples_to_seconds

if TYPE_CHECKING:
    from sidecar.token2wav.state import OpenedVoice, StreamState

Samples = NDArray[np.float32]
Clock = Callable[[], float]


class SpeechStream:
    """Speech tokens go in at one end (`feed`, `finish`), samples come out at the other (`samples`).

    Lives on the event loop. Memory is bounded by the most tokens a reply may have, 3,840 bytes of samples each.

    Args:
        chunker: cuts the tokens.
        voice, seed: what token2wav starts this stream with.
        clock: seconds, monotonic.
        on_change: called when a chunk may have become ready, or the stream has ended.
    """

    def __init__(
        self, chunker: Chunker, voice: OpenedVoice, *, seed: int, clock: Clock, on_change: Callable[[], None]
    ) -> None:
        self.chunker = chunker
        self.voice = voice
        self.seed = seed
        self.state: StreamState | None = None  # made by the first step
        self.ended_at: float | None = None
        self.underruns = 0
        self._clock = clock
        self._on_change = on_change
        self._opened_at = clock()
        self._sound_lasts_until: float | None = None
        self._made: asyncio.Queue[Samples | SidecarError | None] = asyncio.Queue()

    @property
    def ended(self) -> bool:
        """Nothing more will be made; sound may still wait for its listener."""
        return self.ended_at is not None

    def feed(self, tokens: Iterable[int]) -> None:
        if not self.ended:
            self.chunker.feed(tokens)
            self._on_change()

    def finish(self) -> None:
        """No more tokens will come; what is there is still spoken. A second call does nothing."""
        if self.ended or self.chunker.done:
            return  # `done`, but not ended: the last chunk is being computed
        self.chunker.finish()
        if self.chunker.done:
            self._end(None)
        self._on_change()

    def fail(self, error: SidecarError) -> None:
        """End here: the listener gets what was made until now, then the error."""
        self._end(error)

    def abandon(self) -> None:
        """Nobody listens any more."""
        self._end(None)

    async def samples(self) -> AsyncIterator[Samples]:
        """Sound as it is made, (S,) in [-1, 1] at 24 kHz.

        Raises:
            SidecarError: what `fail` was called with.
        """
        while (made := await self._made.get()) is not None:
            if isinstance(made, SidecarError):
                raise made
            yield made

    def urgency(self) -> tuple[bool, float]:
        """Smallest first: whoever has no sound yet, in order of arrival; then whose sound runs out soonest."""
        if self._sound_lasts_until is None:
            return (False, self._opened_at)
        return (True, self._sound_lasts_until)

    def deliver(self, samples: Samples, state: StreamState | None) -> None:
        """Take what a step has made of the chunk that was taken."""
        if self.ended:
            return
        self.state = state
        if samples.size:
            self._count_playout(samples_to_seconds(samples.size))
            self._made.put_nowait(samples)
        if self.chunker.done:
            self._end(None)

    def _count_playout(self, seconds: float) -> None:
        """Play on from where the sound at hand ends; if it has ended already, the listener has heard a gap."""
        now = self._clock()
        if self._sound_lasts_until is not None and now > self._sound_lasts_until:
            self.underruns += 1
        self._sound_lasts_until = max(now, self._sound_lasts_until or now) + seconds

    def _end(self, error: SidecarError | None) -> None:
        if self.ended:
            return
        self.ended_at = self._clock()
        self.state = None
        self._made.put_nowait(error)
        self._on_change()
