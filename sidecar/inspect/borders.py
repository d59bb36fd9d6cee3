"""Where a stream's chunks meet in its sound, found by cutting so many tokens as the server would."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sidecar.streaming.chunking import Chunker, ChunkPlan
from sidecar.timebase import SAMPLES_PER_TOKEN, tokens_to_samples
from sidecar.token2wav.overlap import OVERLAP_SAMPLES
from sidecar.token2wav.upsample_encoder import LOOKAHEAD_TOKENS


@dataclass(frozen=True)
class ListedSizes(ChunkPlan):
    """Sizes one by one; the last repeats."""

    sizes: tuple[int, ...]

    def new_tokens(self, chunk_index: int) -> int:
        return self.sizes[min(chunk_index, len(self.sizes) - 1)]


@dataclass(frozen=True)
class Border:
    """A place where one chunk's sound was joined to the next one's."""

    sample: int  # the first that came with the later chunk
    seam_end: int  # until here the earlier chunk had made sound too, which was withheld


def listed_sizes(sizes: Sequence[int]) -> ListedSizes:
    """A plan of chunk sizes in speech tokens."""
    return ListedSizes(sizes[0], sizes[-1], tuple(sizes))


def borders(samples: int, plan: ChunkPlan) -> list[Border]:
    """Those of a whole reply of so many samples at 24 kHz that was streamed by `plan`.

    A chunk's newest sound is withheld and comes with the next chunk, so a border lies before the chunk's last token. A
    chunk that has nothing more to give than that makes no border.
    """
    chunker = Chunker(plan, lookahead_tokens=LOOKAHEAD_TOKENS)
    chunker.feed(range(-(-samples // SAMPLES_PER_TOKEN)))
    found, tokens_done = [], 0
    while (chunk := chunker.peek()) is not None:
        chunker.take()
        tokens_done += chunk.new_tokens
        end = tokens_to_samples(tokens_done)
        if end > OVERLAP_SAMPLES:
            found.append(Border(end - OVERLAP_SAMPLES, min(end, samples)))
    return found
