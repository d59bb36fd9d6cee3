"""Attention over the voice's prompt, the stream's window and the new chunk, each read where it lies."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from sidecar.token2wav.gpu.attention_kernel import attend_kernel, merge_kernel
from sidecar.token2wav.gpu.rows import Field, Rows

TRITON_DTYPES = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16, torch.float32: tl.float32}

#: With fewer rows times heads, programs of 64 queries would leave most of a GPU's 132 multiprocessors idle.
_FEW_ROWS_AND_HEADS = 64
#: As many as an H100 runs at once with the shared memory that relative positions take.
_PROGRAMS = 132
_MOST_SPLITS = 8
_FEW_INTERPRETED = 12
_MERGED = 8  # queries that a program of the merge takes


@dataclass(frozen=True)
class Remembered:
    """Where the keys and values of one layer lie, beside each other in the last axis.

    Those of position p of the stream are in column p mod ring; the new ones must be there already.
    """

    ring: Tensor  # (S, H, ring, 2D), or (S, 2, H, ring, 2D) with guidance; a view of the slots' tensor
    voice_field: Field  # which address of a line
    voice_index: int  # the layer's place in the voice's tensor, in units of (H, columns, 2D); guidance adds 1
    columns_per_token: int  # 1 before the upsampling, 2 after it
    window: int  # so many columns before the new ones are seen

    def __post_init__(self) -> None:
        heads, columns, width = self.ring.shape[-3:]
        assert self.ring.stride()[-3:] == (columns * width, width, 1), (
            "a slot's heads, columns and numbers lie in order"
        )
        assert heads > 0 and columns > self.window, f"a ring of {columns} columns for a window of {self.window}"


@dataclass(frozen=True)
class RelativePositions:
    """The second part of each score (`conformer.RelativeAttention`), turned(g, a) . [cos j, sin j] for places a and j.

    Any two places serve that lie as far apart as query and key. For a prompt's keys they are the true positions; for a
    stream's own they count from the beginning of its window, so that one table serves every stream for ever.
    """

    query: Tensor  # (B, T, H * C): g of each head, all factors of sines before all factors of cosines
    angles: Tensor  # (B, T, C) float32: cosines, then sines, of the new steps' true positions
    table: Tensor  # (places, C): cosines, then sines, of 0, 1, 2 ...


def attend(
    query: Tensor, remembered: Remembered, rows: Rows, *, heads: int, relative: RelativePositions | None = None
) -> Tensor:
    """Every new step of a line sees the line's prompt, its window and all its new steps. Scale 1 / sqrt(D).

    Args:
        query: (R, T, H * D), contiguous along its last axis; R = B, or 2B with guidance: all lines with, then without.

    Returns:
        (R, T, H * D) of the same dtype. Steps beyond a line's own are finite or zero and mean nothing.
    """
    batch, steps, inner = query.shape
    width = inner // heads
    assert query.stride(2) == 1, "a query's numbers lie side by side"
    blocks = _blocks(query, heads, relative=relative is not None)
    whole = blocks.splits == 1
    out = torch.empty(batch, steps, inner, dtype=query.dtype, device=query.device)
    # each part of the keys by itself, and what it weighs
    parts = out if whole else out.new_empty(blocks.splits, *out.shape, dtype=torch.float32)
    weights = parts if whole else parts.new_empty(blocks.splits, batch, steps, heads)
    places = relative or RelativePositions(query, query, query)  # one that is not looked at
    channels = 2 if relative is None else relative.table.shape[1]
    block_d = max(16, triton.next_power_of_2(width))
    attend_kernel[(triton.cdiv(steps, blocks.queries) * blocks.splits, heads, batch)](
        query,
        query.stride(0),
        query.stride(1),
        remembered.ring,
        remembered.ring.stride(0),
        remembered.ring.stride(1) if batch != rows.batch else 0,
        rows.control,
        rows.control.stride(0),
        places.query,
        places.query.stride(0),
        places.query.stride(1),
        places.angles,
        places.table,
        parts,
        weights,
        rows.batch,
        steps,
        remembered.voice_field.value,
        remembered.voice_index,
        remembered.columns_per_token,
        remembered.window,
        remembered.ring.shape[-2],
        blocks.splits,
        HEADS=heads,
        WIDTH=width,
        HALF=channels // 2,
        SCALE=math.log2(math.e) / math.sqrt(width),
        RELATIVE=relative is not None,
        WHOLE=whole,
        DTYPE=TRITON_DTYPES[query.dtype],
        BLOCK_M=blocks.queries,
        BLOCK_N=blocks.keys,
        BLOCK_D=block_d,
        BLOCK_H=max(16, triton.next_power_of_2(channels // 2)),
        num_warps=blocks.warps,
        num_stages=blocks.stages,
    )
    if not whole:
        count = batch * steps * heads
        merge_kernel[(triton.cdiv(count, _MERGED),)](
            parts, weights, out, count, blocks.splits,
            MOST_SPLITS=_MOST_SPLITS, WIDTH=width, BLOCK=_MERGED, BLOCK_D=block_d, num_warps=4,
        )  # fmt: skip
    return out


class _Blocks(NamedTuple):
    queries: int
    keys: int
    warps: int
    stages: int
    splits: int


#: Of the estimator: in float32, with few rows and heads, and with many.
_WIDE, _FEW, _MANY = _Blocks(16, 64, 4, 3, 1), _Blocks(16, 128, 4, 3, 1), _Blocks(64, 64, 4, 4, 1)


def _blocks(query: Tensor, heads: int, *, relative: bool) -> _Blocks:
    """Small blocks of queries where there are few, to fill the GPU; large ones read the keys less often.

    The encoder's windows are long and its table makes every key cost 1 KB more to read, so where its blocks are few,
    several programs share the keys of each. The estimator's keys are too few to be worth the second kernel.
    """
    rows, steps, _ = query.shape
    wide = query.dtype == torch.float32
    if query.device.type == "cpu":  # the interpreter pays for each program, not for its size
        return _Blocks(16, 64, 4, 1, 2 if relative and rows * heads <= _FEW_INTERPRETED else 1)
    if not relative:
        few = steps <= 16 or rows * heads < _FEW_ROWS_AND_HEADS
        return _WIDE if wide else _FEW if few else _MANY
    queries = 16 if wide or steps <= 16 else 32 if steps <= 32 else 64
    splits = max(1, min(_MOST_SPLITS, _PROGRAMS // (triton.cdiv(steps, queries) * rows * heads)))
    if queries == 16:
        return _Blocks(16, 16 if wide else 64, 4, 2, splits)
    return _Blocks(queries, 32, 8, 3, splits)
