"""Sequences of different lengths in one tensor, each line as long as its mel frames make it."""

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor


@dataclass(frozen=True)
class Ragged:
    """G groups of B lines, channels last. Line b is rate * lengths[b] + extra rows long, or empty where that is 0.

    What lies beyond may be anything: kernels read zero there, which is the zero padding that the line would get alone.
    """

    values: Tensor  # (G, B, L, C)
    lengths: Tensor  # (B,) integers: mel frames
    rate: int = 1
    extra: int = 0

    @property
    def groups(self) -> int:
        return self.values.shape[0]

    @property
    def lines(self) -> int:
        return self.values.shape[1]

    @property
    def rows(self) -> int:
        """L, room for so many rows in each line."""
        return self.values.shape[2]

    @property
    def channels(self) -> int:
        return self.values.shape[3]


@triton.jit
def valid_rows(lengths, line, RATE: tl.constexpr, EXTRA: tl.constexpr):  # type: ignore[no-untyped-def]
    """How many rows of a line are its own."""
    frames = tl.load(lengths + line).to(tl.int32)
    return tl.where(frames > 0, frames * RATE + EXTRA, 0)
