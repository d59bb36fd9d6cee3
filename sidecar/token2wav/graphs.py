"""Steps for many streams on one GPU: every shape that can come is captured before the first listener does.

A step is some 3,000 kernels; to launch them one by one would take the CPU longer than it takes the GPU to run them.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from sidecar.token2wav.gpu.lanes import Bucket, Lane, Submitted
from sidecar.token2wav.gpu.playing import Chunk, Playing, check_voice
from sidecar.token2wav.gpu.step import GpuToken2Wav
from sidecar.token2wav.state import OpenedVoice
from sidecar.token2wav.token2wav import Token2Wav
from sidecar.token2wav.upsample_encoder import LOOKAHEAD_TOKENS

logger = logging.getLogger(__name__)

#: What is ready of a first chunk takes the next place that is free on the GPU. CUDA's highest; torch takes the nearest.
_FIRST_CHUNK_PRIORITY = -5


@dataclass(frozen=True)
class Memory:
    """Bytes on the GPU, besides the weights that `Token2Wav` itself holds; on a CPU nobody counts the last two."""

    bytes_per_slot: int
    slots: int  # all together
    layouts: int  # weights once more, in the order that the kernels read them, and tables
    graphs: int  # and what passes between their kernels

    def __str__(self) -> str:
        return (
            f"{self.bytes_per_slot / 1e6:.1f} MB a stream, {self.slots / 1e6:.0f} MB for all; "
            f"weights laid out {self.layouts / 1e6:.0f} MB, graphs {self.graphs / 1e6:.0f} MB"
        )


class CapturedSteps:
    """Steps in two lanes: one for every chunk, one for first chunks alone, which need not wait until the others' step
    is over. A chunk goes into the next larger shape; tokens and lines too many change nothing for the others.

    `open`, `close` and `shareable` touch no device. A stream's step is waited for before its next is submitted.

    Args:
        token2wav: on a GPU; or on a CPU where Triton's interpreter runs the kernels, and nothing is captured.
        slots: streams that can play at once.
        chunk_tokens: new tokens of the plan's chunks, ascending from the first to the steady size.
        most_rows: streams of a step at most.
        capture: without it, the same kernels are launched one by one: the oracle of the captured ones.

    Raises:
        ValueError: as `GpuToken2Wav`.
    """

    #: On an H100 a second of speech for one stream takes 9.5 ms, for eight 14.3, for 32 33.
    cheap_rows = 8

    @torch.inference_mode()
    def __init__(
        self,
        token2wav: Token2Wav,
        *,
        slots: int,
        chunk_tokens: Sequence[int],
        most_rows: int = 32,
        capture: bool = True,
    ) -> None:
        self.most_rows = min(most_rows, slots)
        self._sizes = token_sizes(chunk_tokens)
        before = _allocated(token2wav.flow.device)
        self.step = GpuToken2Wav(token2wav, slots=slots, most_tokens=self._sizes[-1])
        of_slots = slots * self.step.slots.bytes_per_slot
        layouts = max(0, _allocated(self.step.device) - before - of_slots)
        self._free = list(reversed(range(slots)))
        self._lanes = self._every_and_first(chunk_tokens[0])
        graphs = 0
        if self.step.device.type == "cuda":
            # slots and weights were written in another CUDA stream than the lanes'
            torch.cuda.synchronize(self.step.device)
            graphs = self._capture() if capture else 0
        self.memory = Memory(self.step.slots.bytes_per_slot, of_slots, layouts, graphs)
        logger.info("%s", self.memory)

    @property
    def lanes(self) -> int:
        return len(self._lanes)

    def open(self, voice: OpenedVoice, /, *, seed: int) -> Playing | None:
        """A slot for a stream; None while all are taken."""
        check_voice(voice, self.step.dtype, self.step.device)
        return Playing(self._free.pop(), voice, seed) if self._free else None

    def close(self, playing: Playing, /) -> None:
        """No step of the stream is under way, nor will one come."""
        assert playing.slot not in self._free, f"slot {playing.slot} was given back twice"
        self._free.append(playing.slot)

    def shareable(self, _leader: tuple[Playing, Chunk], _other: tuple[Playing, Chunk], /) -> bool:
        """Chunks of all lengths and places share a step."""
        return True

    @torch.inference_mode()
    def submit(self, rows: Sequence[tuple[Playing, Chunk]], /, *, lane: int) -> Submitted:
        """
        Raises:
            SynthesisFailed: a token outside the vocabulary; no stream has moved then.
        """
        lines = [playing.row(chunk, vocab_size=self.step.vocab_size) for playing, chunk in rows]
        submitted = self._lanes[lane].submit([playing for playing, _ in rows], lines)
        for (playing, _), line in zip(rows, lines, strict=True):
            playing.advance(line.new_tokens)
        return submitted

    def _every_and_first(self, first_chunk_tokens: int) -> list[Lane]:
        # a first chunk that is also the last may have as many tokens more as it needs no look-ahead
        longest = self._fitting(first_chunk_tokens + LOOKAHEAD_TOKENS - 1)
        first = [size for size in self._sizes if size <= longest]
        batches = batch_sizes(self.most_rows)
        return [
            Lane(self.step, batches, self._sizes, priority=0),
            Lane(self.step, batches, first, priority=_FIRST_CHUNK_PRIORITY),
        ]

    def _fitting(self, new_tokens: int) -> int:
        return next(size for size in self._sizes if size >= new_tokens)

    def _capture(self) -> int:
        """How many bytes all graphs take."""
        free_before, _ = torch.cuda.mem_get_info(self.step.device)
        count, captured = sum(map(len, self._lanes)), 0

        def report(bucket: Bucket) -> None:
            nonlocal captured
            captured += 1
            logger.info("captured %d of %d: %d x %d tokens", captured, count, bucket.batch, bucket.tokens)

        for lane in self._lanes:
            lane.capture(report)
        free_after, _ = torch.cuda.mem_get_info(self.step.device)
        return free_before - free_after


def token_sizes(chunk_tokens: Sequence[int]) -> tuple[int, ...]:
    """The sizes of the plan, and the most new tokens that a last chunk can have."""
    assert list(chunk_tokens) == sorted(chunk_tokens), f"the sizes of the plan do not ascend: {chunk_tokens}"
    return tuple(sorted({*chunk_tokens, chunk_tokens[-1] + LOOKAHEAD_TOKENS - 1}))


def batch_sizes(most_rows: int) -> tuple[int, ...]:
    """Powers of 2, and the most."""
    return tuple(sorted({*(2**power for power in range(most_rows.bit_length())), most_rows}))


def _allocated(device: torch.device) -> int:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
