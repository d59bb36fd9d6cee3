"""Weights on their way from memory before the product that takes them begins.

A step's weights and voices are larger than a GPU's L2 cache, so a product with few rows would mostly wait for its
weights. The norms between the products ask for those of the next but one; nothing waits for what is asked for here.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

_PIECE = 2048  # bytes that one thread asks for
PIECE_BYTES = tl.constexpr(_PIECE)
_THREADS = tl.constexpr(128)

#: Turned off, every product fetches its own.
ASK_AHEAD = False


class Ahead(NamedTuple):
    """A stretch of memory that is going to be read soon."""

    start: Tensor
    pieces: int

    @staticmethod
    def of(numbers: Tensor) -> Ahead:
        """Of contiguous numbers; of none where there is no such cache to ask."""
        asked = ASK_AHEAD and numbers.is_cuda
        return Ahead(numbers, numbers.numel() * numbers.element_size() // _PIECE if asked else 0)


@triton.jit
def ask_for_pieces(address, first, stop):  # type: ignore[no-untyped-def]
    """Pieces `first` to `stop` of what lies at `address`, an integer, into the L2 cache. For programs of 4 warps."""
    for start in range(first, stop, _THREADS):
        piece = start + tl.arange(0, _THREADS)
        tl.inline_asm_elementwise(
            """
            {
                .reg .pred asked;
                setp.ne.s32 asked, $2, 0;
                @asked cp.async.bulk.prefetch.L2.global [$1], $3;
                mov.b32 $0, 0;
            }
            """,
            "=r,l,r,r",
            [address + piece.to(tl.int64) * PIECE_BYTES, (piece < stop).to(tl.int32), piece * 0 + PIECE_BYTES],
            dtype=tl.int32,
            is_pure=False,
            pack=1,
        )


@triton.jit
def ask_ahead(start, pieces):  # type: ignore[no-untyped-def]
    """This program's share of so many pieces from `start` on."""
    share = tl.cdiv(pieces, tl.num_programs(0))
    first = tl.program_id(0) * share
    ask_for_pieces(start.to(tl.int64), first, tl.minimum(first + share, pieces))
