"""Which streams go next, and the one thread that computes for them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import torch

from sidecar.errors import SidecarError, SynthesisFailed
from sidecar.streaming.chunking import Chunk, Chunker, ChunkPlan
from sidecar.streaming.stream import Clock, Samples, SpeechStream

if TYPE_CHECKING:
    from sidecar.token2wav.state import OpenedVoice, StreamState
    from sidecar.token2wav.token2wav import Token2Wav

logger = logging.getLogger(__name__)


class StreamScheduler:
    """Runs one step after the other for the most urgent stream. Choosing happens on the event loop, computing in one
    thread of its own, so that neither ever waits for the other's locks.

    A step takes a list of streams whose next chunks have one shape and whose states hold equally many frames; for now
    the list holds one. Sound that is not finite ends its own stream; a step that raises ends all streams of the list.
    Tokens outside the vocabulary make it raise: the splitter, whose tokens the streams are fed, gives none.

    Args:
        token2wav: whose `step` is called, always from the same thread.
        plan: sizes of the chunks.
        clock: seconds, monotonic; playout is counted with it.
        on_step: told how many seconds each step took.
    """

    def __init__(
        self,
        token2wav: Token2Wav,
        plan: ChunkPlan,
        *,
        clock: Clock = time.monotonic,
        on_step: Callable[[float], None] = lambda _: None,
    ) -> None:
        self._token2wav = token2wav
        self._plan = plan
        self._clock = clock
        self._on_step = on_step
        self._streams: list[SpeechStream] = []
        self._changed = asyncio.Event()
        self._compute_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="token2wav")
        self._loop_task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to serve streams; needs a running event loop."""
        self._loop_task = asyncio.create_task(self._run(), name="stream scheduler")

    async def close(self) -> None:
        """Stop after the step that is being computed; streams that still run are abandoned."""
        for stream in list(self._streams):
            stream.abandon()
        if self._loop_task is not None:
            self._loop_task.cancel()
            await asyncio.gather(self._loop_task, return_exceptions=True)
        self._compute_thread.shutdown(wait=False, cancel_futures=True)

    def open(self, voice: OpenedVoice, *, seed: int) -> SpeechStream:
        """A new stream; it stays with the scheduler until it has ended, failed or been abandoned."""
        chunker = Chunker(self._plan, lookahead_tokens=self._token2wav.LOOKAHEAD_TOKENS)
        stream = SpeechStream(chunker, voice, seed=seed, clock=self._clock, on_change=self._changed.set)
        self._streams.append(stream)
        return stream

    async def _run(self) -> None:
        while True:
            self._changed.clear()
            batch = self._next_batch()
            if batch:
                await self._step(batch)
            else:
                await self._changed.wait()

    def _next_batch(self) -> list[SpeechStream]:
        self._streams = [stream for stream in self._streams if not stream.ended]
        ready = [stream for stream in self._streams if stream.chunker.peek() is not None]
        return [min(ready, key=SpeechStream.urgency)] if ready else []

    async def _step(self, batch: Sequence[SpeechStream]) -> None:
        chunks = [stream.chunker.take() for stream in batch]
        loop = asyncio.get_running_loop()
        try:
            made = await loop.run_in_executor(self._compute_thread, self._compute, batch, chunks)
        except Exception as error:
            # whatever went wrong went wrong for these streams: the others, and the server, go on
            failure = error if isinstance(error, SidecarError) else SynthesisFailed(f"token2wav failed: {error}")
            logger.error("a step of %d stream(s) failed", len(batch), exc_info=error)
            for stream in batch:
                stream.fail(failure)
            return
        for stream, (samples, state) in zip(batch, made, strict=True):
            if np.isfinite(samples).all():
                stream.deliver(samples, state)
            else:
                stream.fail(
                    SynthesisFailed(
                        "the speech ends here: token2wav made samples that are not finite numbers; try again with "
                        "another seed, text or voice"
                    )
                )

    def _compute(
        self, batch: Sequence[SpeechStream], chunks: Sequence[Chunk]
    ) -> list[tuple[Samples, StreamState | None]]:
        """In the compute thread: one step of chunks of one shape."""
        started_at = time.perf_counter()
        with torch.inference_mode():
            states = [stream.state or self._token2wav.start(stream.voice, seed=stream.seed) for stream in batch]
            tokens = torch.tensor([chunk.tokens for chunk in chunks], dtype=torch.int64)  # (B, N)
            samples, after = self._token2wav.step(tokens, states, last=chunks[0].last)  # (B, S)
            # copies: a view that waits for its listener would keep the whole batch's sound alive
            rows = [row.copy() for row in samples.float().cpu().numpy()]
        self._on_step(time.perf_counter() - started_at)
        return list(zip(rows, after, strict=True))
