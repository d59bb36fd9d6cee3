"""Steps one after the other, each shape captured in a CUDA graph of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sidecar.timebase import frames_to_samples, tokens_to_frames
from sidecar.token2wav.gpu.playing import Playing
from sidecar.token2wav.gpu.rows import Row, Rows
from sidecar.token2wav.gpu.seams import samples_given
from sidecar.token2wav.gpu.step import GpuToken2Wav
from sidecar.token2wav.overlap import OVERLAP_FRAMES


class Submitted:
    """A step under way. The next one in its lane overwrites its buffer, so it is waited for before that begins."""

    def __init__(self, samples: Tensor, given: Sequence[int], made: torch.cuda.Event | None) -> None:
        self._samples = samples  # (B, S) on the host
        self._given = given
        self._made = made

    def wait(self) -> list[NDArray[np.float32]]:
        """Blocks, in any thread, until the step is over. (S,) for each row in memory of its own; NaN from end to end
        where a row is not finite."""
        if self._made is not None:
            self._made.synchronize()
        return [row[:given].copy() for row, given in zip(self._samples.numpy(), self._given, strict=True)]


class Bucket:
    """One shape: its input on both sides, and what makes the samples of it."""

    def __init__(self, step: GpuToken2Wav, batch: int, tokens: int) -> None:
        on_gpu = step.device.type == "cuda"
        self.batch, self.tokens = batch, tokens
        self._rows = Rows.empty(batch, tokens, step.device)
        self._host = Rows.empty(batch, tokens, "cpu", pinned=on_gpu)
        self._run: Callable[[], Tensor] = lambda: step.step(self._rows)

    def run(self, lines: Sequence[Row]) -> Tensor:
        """(B, S) on the device, in the current CUDA stream."""
        self._host.write(lines)
        self._rows.control.copy_(self._host.control, non_blocking=True)
        return self._run()

    def capture(self, stream: torch.cuda.Stream, pool: Any) -> None:
        """With empty lines. What is compiled or set up by a first run cannot be captured, so there is one before."""
        with torch.cuda.stream(stream):
            self.run([])
            stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        # by thread: others may go on using the GPU, to open voices
        with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            samples = self._run()

        def replay() -> Tensor:
            graph.replay()
            return samples

        self._run = replay


class Lane:
    """A CUDA stream with buffers and graphs of its own; what runs in another lane runs beside it.

    The graphs share one pool of memory: what one leaves there is copied to the host before the next one starts.

    Args:
        batches, tokens: every pair of them is a bucket.
        priority: of the CUDA stream and of the kernels captured in it; lower goes first.
    """

    def __init__(self, step: GpuToken2Wav, batches: Sequence[int], tokens: Sequence[int], *, priority: int) -> None:
        on_gpu = step.device.type == "cuda"
        self._step = step
        stream = torch.cuda.Stream(step.device, priority=priority) if on_gpu else None  # type: ignore[no-untyped-call]
        self._stream: torch.cuda.Stream | None = stream
        self._buckets = [Bucket(step, batch, size) for size in sorted(tokens) for batch in sorted(batches)]
        samples = max(batches) * frames_to_samples(tokens_to_frames(max(tokens)) + OVERLAP_FRAMES)
        self._samples = torch.empty(samples, dtype=torch.float32, pin_memory=on_gpu)

    def __len__(self) -> int:
        """How many buckets there are."""
        return len(self._buckets)

    def capture(self, on_captured: Callable[[Bucket], None]) -> None:
        """Every bucket, the largest first: the others then find room in the memory that it took."""
        assert self._stream is not None, "only what runs on a GPU can be captured"
        pool = torch.cuda.graph_pool_handle()
        # the stream's device, or capturing would also set up another one and take memory there
        with torch.cuda.device(self._stream.device):
            for bucket in reversed(self._buckets):
                bucket.capture(self._stream, pool)
                on_captured(bucket)

    def submit(self, playing: Sequence[Playing], lines: Sequence[Row]) -> Submitted:
        """Begin a step of these lines in the smallest bucket that holds them."""
        new_tokens = max(line.new_tokens for line in lines)
        bucket = next(bucket for bucket in self._buckets if bucket.tokens >= new_tokens and bucket.batch >= len(lines))
        with torch.cuda.stream(self._stream):
            for stream in playing:
                if not stream.begun:
                    self._step.begin(stream.slot, stream.voice)
            samples = bucket.run(lines)[: len(lines)]
            host = self._samples[: samples.numel()].view(samples.shape)
            host.copy_(samples, non_blocking=True)
            made = self._recorded()
        given = [samples_given(line.held_frames, tokens_to_frames(line.new_tokens), last=line.last) for line in lines]
        return Submitted(host, given, made)

    def _recorded(self) -> torch.cuda.Event | None:
        if self._stream is None:
            return None
        # blocking: the thread that waits sleeps, and leaves its core to the event loop
        made = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        made.record(self._stream)
        return made
