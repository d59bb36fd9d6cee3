"""Runs the steps: chosen on the event loop, begun in the one thread that computes, waited for in others."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sidecar.errors import SidecarError, SynthesisFailed
from sidecar.streaming.chunking import Chunk, Chunker, ChunkPlan
from sidecar.streaming.steps import FIRST_CHUNK_LANE, Samples, Steps
from sidecar.streaming.stream import Clock, SpeechStream
from sidecar.streaming.turns import Row, Turns
from sidecar.token2wav.upsample_encoder import LOOKAHEAD_TOKENS

if TYPE_CHECKING:
    from sidecar.token2wav.state import OpenedVoice

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepTaken:
    """What a step was, for those who count."""

    seconds: float
    streams: int
    first: bool  # a first chunk led it


class StreamScheduler:
    """One step after the other in each lane, while there is a chunk for it.

    A row that is not finite ends its own stream. A step that cannot begin is tried again row by row, which ends those
    that broke it; one that breaks later ends all its streams. What a stream holds where it is computed is given back
    as soon as it has ended and no step of it is under way.

    Args:
        steps: computes.
        plan: sizes of the chunks.
        batch_wait_s: how long a chunk may wait for others to share its step with, while nobody hurries.
        clock: seconds, monotonic; playout is counted with it.
        on_step: told of each step, in a thread that waited for it.
        on_broken: called, in any thread, when no more steps will come: the device is lost, or a lane is.
    """

    def __init__(
        self,
        steps: Steps[Any],
        plan: ChunkPlan,
        *,
        batch_wait_s: float = 0.0,
        clock: Clock = time.monotonic,
        on_step: Callable[[StepTaken], None] = lambda _: None,
        on_broken: Callable[[], None] = lambda: None,
    ) -> None:
        self._steps = steps
        self._plan = plan
        self._turns = Turns(steps, batch_wait_s)
        self._clock = clock
        self._on_step = on_step
        self._on_broken = on_broken
        self._streams: list[SpeechStream] = []
        self._changed = [asyncio.Event() for _ in range(steps.lanes)]
        self._compute_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="token2wav")
        self._waiting_threads = ThreadPoolExecutor(max_workers=steps.lanes, thread_name_prefix="step")
        self._lanes: list[asyncio.Task[None]] = []

    @property
    def chunks_waiting(self) -> int:
        """Chunks that could be computed, and are not."""
        return sum(stream.ready for stream in self._streams)

    def start(self) -> None:
        """Begin to serve streams; needs a running event loop."""
        self._lanes = [
            asyncio.create_task(self._serve(lane), name=f"stream scheduler, lane {lane}")
            for lane in range(self._steps.lanes)
        ]
        for lane in self._lanes:
            lane.add_done_callback(self._lane_ended)

    async def close(self) -> None:
        """Begin no more steps; streams that still run are abandoned."""
        for stream in list(self._streams):
            stream.abandon()
        for lane in self._lanes:
            lane.cancel()
        await asyncio.gather(*self._lanes, return_exceptions=True)
        self._waiting_threads.shutdown(wait=False, cancel_futures=True)
        self._compute_thread.shutdown(wait=False, cancel_futures=True)

    def open(self, voice: OpenedVoice, *, seed: int, live: bool = True) -> SpeechStream:
        """A new stream; it stays with the scheduler until it has ended, failed or been abandoned.

        Args:
            live: somebody listens while it is made.
        """
        stream = SpeechStream(
            Chunker(self._plan, lookahead_tokens=LOOKAHEAD_TOKENS),
            voice,
            seed=seed,
            live=live,
            clock=self._clock,
            on_ready=self._wake,
            on_end=self._ended,
        )
        self._streams.append(stream)
        return stream

    def _wake(self) -> None:
        for changed in self._changed:
            changed.set()

    def _ended(self, stream: SpeechStream) -> None:
        self._streams.remove(stream)
        if not stream.in_step:
            self._free(stream)

    def _free(self, stream: SpeechStream) -> None:
        playing, stream.playing = stream.playing, None
        if playing is not None:
            self._steps.close(playing)
            self._wake()  # one may wait for this memory

    async def _serve(self, lane: int) -> None:
        changed = self._changed[lane]
        while True:
            changed.clear()
            waiting, now = self._waiting(lane), self._clock()
            wait_s = self._turns.wait_s(waiting, len(self._streams), now)
            if wait_s > 0:
                with suppress(TimeoutError):
                    await asyncio.wait_for(changed.wait(), wait_s)
            elif rows := self._turns.next_step(waiting, now):
                await self._step(rows, lane)
            else:
                await changed.wait()

    def _waiting(self, lane: int) -> list[SpeechStream]:
        """Streams whose chunk could be computed in this lane now."""
        ready = [stream for stream in self._streams if stream.ready]
        if self._steps.lanes > 1:
            ready = [stream for stream in ready if _hurries_to_begin(stream) == (lane == FIRST_CHUNK_LANE)]
        return [stream for stream in sorted(ready, key=SpeechStream.due_at) if self._has_memory(stream)]

    def _has_memory(self, stream: SpeechStream) -> bool:
        """Where all of it is in use, the stream is asked again once some has been given back."""
        if stream.playing is None:
            try:
                stream.playing = self._steps.open(stream.voice, seed=stream.seed)
            except Exception as error:
                # one stream's trouble: without this it would end the lane, and with it everybody's speech
                stream.fail(_failure(error))
        return stream.playing is not None

    async def _step(self, rows: Sequence[Row], lane: int) -> None:
        streams = [stream for stream, _ in rows]
        first = streams[0].chunker.at_start
        for stream in streams:
            stream.chunker.take()
            stream.in_step = True
        step = [(stream.playing, chunk) for stream, chunk in rows]
        loop = asyncio.get_running_loop()
        try:
            made = await loop.run_in_executor(self._waiting_threads, self._compute, step, lane, first)
        except Exception as error:
            # whatever went wrong went wrong for these streams: the others, and the server, go on
            self._end_if_lost(error)
            made = [_failure(error)] * len(streams)
        self._over(streams)
        for stream, samples in zip(streams, made, strict=True):
            if isinstance(samples, SidecarError):
                stream.fail(samples)
            else:
                stream.deliver(samples)

    def _over(self, streams: Sequence[SpeechStream]) -> None:
        for stream in streams:
            stream.in_step = False
            if stream.ended:  # while it was computed
                self._free(stream)

    def _compute(self, step: Sequence[tuple[Any, Chunk]], lane: int, first: bool) -> list[Samples | SidecarError]:
        """In a waiting thread: one step from its beginning to its end, and what became of each row."""
        started_at = time.perf_counter()
        try:
            pending = self._compute_thread.submit(self._steps.submit, step, lane=lane).result()
        except Exception as error:
            self._end_if_lost(error)
            if len(step) == 1:
                return [_failure(error)]
            # no stream has moved yet: whoever broke it shall break alone
            return [made for row in step for made in self._compute([row], lane, first)]
        made = pending.wait()
        self._on_step(StepTaken(time.perf_counter() - started_at, len(step), first))
        return [samples if np.isfinite(samples).all() else _not_finite() for samples in made]

    def _lane_ended(self, lane: asyncio.Task[None]) -> None:
        # only a mistake of ours ends one; its streams would wait for ever
        if not lane.cancelled():
            logger.error("%s ended", lane.get_name(), exc_info=lane.exception())
            self._on_broken()

    def _end_if_lost(self, error: Exception) -> None:
        # CUDA says the same to every call after its first error
        if isinstance(error, torch.AcceleratorError):
            self._on_broken()


def _hurries_to_begin(stream: SpeechStream) -> bool:
    return stream.live and stream.chunker.at_start


def _failure(error: Exception) -> SidecarError:
    logger.error("a step of token2wav failed", exc_info=error)
    return error if isinstance(error, SidecarError) else SynthesisFailed(f"token2wav failed: {error}")


def _not_finite() -> SynthesisFailed:
    return SynthesisFailed(
        "the speech ends here: token2wav made samples that are not finite numbers; try again with another seed, text "
        "or voice"
    )
