"""One listener: the chunks of its speech, the sound that waits for it, and when that sound runs out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from typing import TYPE_CHECKING

from sidecar.errors import SidecarError
from sidecar.streaming.chunking import Chunker
from sidecar.streaming.steps import Samples
from sidecar.timebase import samples_to_seconds

if TYPE_CHECKING:
    from sidecar.token2wav.state import OpenedVoice

Clock = Callable[[], float]

#: A first chunk goes before all who have sound, and before those whose sound ran out less than this ago: newcomers,
#: however many, keep nobody waiting for longer.
FIRST_SOUND_LEAD_S = 1.0
#: What nobody listens to yet is computed with what is left over, but each of its chunks after so long at the latest.
WHOLE_PATIENCE_S = 2.0


class SpeechStream:
    """Speech tokens go in at one end (`feed`, `finish`), samples come out at the other (`samples`).

    Lives on the event loop. Memory is bounded by the most tokens a reply may have, 3,840 bytes of samples each.

    Args:
        chunker: cuts the tokens.
        voice, seed: what token2wav starts this stream with.
        live: somebody listens while it is made; else it is wanted as a whole.
        clock: seconds, monotonic.
        on_ready: called when a chunk has become ready.
        on_end: called when nothing more will be made.
    """

    def __init__(
        self,
        chunker: Chunker,
        voice: OpenedVoice,
        *,
        seed: int,
        live: bool,
        clock: Clock,
        on_ready: Callable[[], None],
        on_end: Callable[[SpeechStream], None],
    ) -> None:
        self.chunker = chunker
        self.voice = voice
        self.seed = seed
        self.live = live
        self.playing: object | None = None  # the scheduler's: its memory where it is computed
        self.in_step = False  # the scheduler's: a chunk is being computed
        self.ended_at: float | None = None
        self.underruns = 0
        self._clock = clock
        self._on_ready = on_ready
        self._on_end = on_end
        self._opened_at = clock()
        self._waiting_since = self._opened_at  # for its next sound
        self._ready_since = self._opened_at
        self._sound_lasts_until: float | None = None
        self._made: asyncio.Queue[Samples | SidecarError | None] = asyncio.Queue()

    @property
    def ended(self) -> bool:
        """Nothing more will be made; sound may still wait for its listener."""
        return self.ended_at is not None

    def feed(self, tokens: Iterable[int]) -> None:
        if not self.ended:
            was_ready = self.chunker.ready
            self.chunker.feed(tokens)
            self._note_ready(was_ready)

    def finish(self) -> None:
        """No more tokens will come; what is there is still spoken. A second call does nothing."""
        if self.ended or self.chunker.done:
            return  # `done`, but not ended: the last chunk is being computed
        was_ready = self.chunker.ready
        self.chunker.finish()
        if self.chunker.done:
            self._end(None)
        self._note_ready(was_ready)

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

    @property
    def ready(self) -> bool:
        """It has a chunk that waits for a step."""
        return not self.in_step and not self.ended and self.chunker.ready

    @property
    def ready_since(self) -> float:
        """When its chunk came to wait, by the clock; of one that is `ready`."""
        return max(self._ready_since, self._waiting_since)

    def due_at(self) -> float:
        """When the next chunk must be there, by the clock: the earlier, the more urgent.

        It moves only when a chunk is delivered, so whoever waits comes first some day.
        """
        if not self.live:
            return self._waiting_since + WHOLE_PATIENCE_S
        if self._sound_lasts_until is None:
            return self._opened_at - FIRST_SOUND_LEAD_S
        return self._sound_lasts_until

    def deliver(self, samples: Samples) -> None:
        """Take what a step has made of the chunk that was taken."""
        if self.ended:
            return
        self._waiting_since = self._clock()
        if samples.size:
            self._count_playout(samples_to_seconds(samples.size))
            self._made.put_nowait(samples)
        if self.chunker.done:
            self._end(None)

    def _note_ready(self, was_ready: bool) -> None:
        if self.chunker.ready and not was_ready:
            self._ready_since = self._clock()
            self._on_ready()

    def _count_playout(self, seconds: float) -> None:
        """Play on from where the sound at hand ends; if it has ended already, the listener has heard a gap."""
        now = self._waiting_since
        if self.live and self._sound_lasts_until is not None and now > self._sound_lasts_until:
            self.underruns += 1
        self._sound_lasts_until = max(now, self._sound_lasts_until or now) + seconds

    def _end(self, error: SidecarError | None) -> None:
        if self.ended:
            return
        self.ended_at = self._clock()
        self._made.put_nowait(error)
        self._on_end(self)
