"""One reply under way: the engine's tokens flow in, sound and transcript come out."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING

from sidecar.engine.client import EngineClient, EngineRequest, TokenDelta
from sidecar.errors import EngineFailed, SidecarError
from sidecar.timebase import samples_to_seconds

if TYPE_CHECKING:
    from sidecar.engine.splitter import Split, Splitter
    from sidecar.metrics import Metrics
    from sidecar.streaming.pool import Slot
    from sidecar.streaming.steps import Samples
    from sidecar.streaming.stream import Clock, SpeechStream

logger = logging.getLogger(__name__)


class Speech:
    """Made by the pipeline; whoever has it must `close` it, or leave its `async with`.

    `transcript` and `finish_reason` are whole once `samples` has ended.

    Args:
        stream: speaks the tokens.
        splitter: tells speech from text.
        slot: is freed on closing.
        arrived_at: when the request came, by `clock`.
        on_close: told when all is over.
    """

    def __init__(
        self,
        *,
        request_id: str,
        stream: SpeechStream,
        splitter: Splitter,
        slot: Slot,
        metrics: Metrics,
        clock: Clock,
        arrived_at: float,
        on_close: Callable[[Speech], None],
    ) -> None:
        self.request_id = request_id
        self.transcript = ""
        self.finish_reason = "stop"
        self._stream = stream
        self._splitter = splitter
        self._slot = slot
        self._metrics = metrics
        self._clock = clock
        self._arrived_at = arrived_at
        self._on_close = on_close
        self._first_sound_at: float | None = None
        self._samples = 0
        self._heard_to_the_end = False
        self._failure: SidecarError | None = None
        self._closed = False
        self._reported = False
        self._reading: asyncio.Task[None] | None = None

    @property
    def seed(self) -> int:
        return self._stream.seed

    async def __aenter__(self) -> Speech:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.end()

    async def end(self) -> None:
        """`close`, and write down how it went; a second call does nothing."""
        await self.close()
        if not self._reported:
            self._reported = True
            self._report()

    async def begin(self, engine: EngineClient, request: EngineRequest) -> None:
        """Ask the engine, and return once it has accepted; where it has not, this is closed.

        Raises:
            SidecarError: what the engine says against it.
        """
        accepted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._reading = asyncio.create_task(self._read(engine, request, accepted), name=f"reply {self.request_id}")
        try:
            await accepted
        except BaseException:
            await self.close()
            raise

    async def samples(self) -> AsyncIterator[Samples]:
        """Sound as it is made, (S,) at 24 kHz.

        Raises:
            SidecarError: the engine or token2wav failed on the way.
        """
        assert self._reading is not None, "samples were read before begin"
        try:
            async for samples in self._stream.samples():
                if self._first_sound_at is None:
                    self._first_sound_at = self._clock()
                self._samples += samples.size
                yield samples
        except SidecarError as error:
            self._failure = error
            raise
        await self._reading
        self._heard_to_the_end = True

    def cut_off(self, error: SidecarError) -> None:
        """End the sound here, with this error for the listener."""
        self._stream.fail(error)

    def fail(self, error: SidecarError) -> None:
        """What was made cannot be given to the listener: that is how this speech ends."""
        self._failure = error

    async def close(self) -> None:
        """Stop the engine's request if it still runs, and free the slot; a second call does nothing."""
        if self._closed:
            return
        self._closed = True
        self._stream.abandon()
        self._slot.release()
        self._on_close(self)
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)

    async def _read(self, engine: EngineClient, request: EngineRequest, accepted: asyncio.Future[None]) -> None:
        try:
            # closing the generator is what aborts the request in the engine
            async with aclosing(engine.generate(request)) as items:
                async for item in items:
                    if isinstance(item, TokenDelta):
                        self._hear(item)
                    elif not accepted.done():
                        accepted.set_result(None)
            if not accepted.done():
                raise EngineFailed("the language model ended without an answer; try again")
            self._add(self._splitter.finish())
            self._stream.finish()
        except SidecarError as error:
            self._fail(error, accepted)
        except Exception:
            # a fault while reading one reply ends that reply alone
            logger.exception("reading the engine's reply failed: request_id=%s", self.request_id)
            self._fail(EngineFailed("the language model's reply could not be read; try again"), accepted)

    def _fail(self, error: SidecarError, accepted: asyncio.Future[None]) -> None:
        if not accepted.done():
            accepted.set_exception(error)
        self._stream.fail(error)

    def _hear(self, delta: TokenDelta) -> None:
        self._add(self._splitter.feed(delta.token_ids))
        if delta.finish_reason is not None:
            self.finish_reason = "length" if delta.finish_reason == "length" else "stop"

    def _add(self, split: Split) -> None:
        self.transcript += split.spoken_text
        self._stream.feed(split.speech_codes)

    def _ending(self) -> str:
        if self._failure is not None:
            return self._failure.code or self._failure.type
        return self.finish_reason if self._heard_to_the_end else "hang_up"

    def _report(self) -> None:
        """The request's numbers and its line in the log."""
        ending, metrics = self._ending(), self._metrics
        audio_s = samples_to_seconds(self._samples)
        # until the sound was made: a listener may take as long as it plays to fetch it
        took_s = (self._stream.ended_at or self._clock()) - self._arrived_at
        ttfa_s = None if self._first_sound_at is None else self._first_sound_at - self._arrived_at
        metrics.requests.add(label_value=ending)
        metrics.audio_seconds.add(audio_s)
        metrics.underruns.add(self._stream.underruns)
        if ttfa_s is not None:
            metrics.ttfa_seconds.observe(ttfa_s)
        if audio_s and self._heard_to_the_end:
            metrics.rtf_ratio.observe(took_s / audio_s)
        if self._heard_to_the_end and not audio_s:
            logger.warning("the reply has no speech: request_id=%s", self.request_id)
        logger.log(
            logging.INFO if self._failure is None else logging.ERROR,
            "speech ended: request_id=%s ttfa_ms=%s rtf=%s audio_s=%.2f ended=%s%s",
            self.request_id,
            "-" if ttfa_s is None else f"{1000 * ttfa_s:.0f}",
            f"{took_s / audio_s:.3f}" if audio_s else "-",
            audio_s,
            ending,
            "" if self._failure is None else f" ({self._failure.message})",
        )
