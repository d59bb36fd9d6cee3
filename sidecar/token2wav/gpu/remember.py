"""New keys and values of one layer into the streams' rings."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from sidecar.token2wav.gpu.attention import Remembered
from sidecar.token2wav.gpu.rows import STEP_SIZES, Field, Rows

_SLOT = tl.constexpr(Field.SLOT.value)
_NEW_TOKENS = tl.constexpr(Field.NEW_TOKENS.value)
_TOKENS_DONE = tl.constexpr(Field.TOKENS_DONE.value)

_BLOCK_STEPS = 4


def remember(keys_values: Tensor, remembered: Remembered, rows: Rows, *, heads: int) -> None:
    """Step t of a line into column (G + t) mod ring of its slot; steps that are not the line's own are left out.

    Args:
        keys_values: (B, T, 2 * H * D), all heads' keys, then all heads' values; contiguous along its last axis.
    """
    batch, steps, inner = keys_values.shape
    assert keys_values.stride(2) == 1, "a step's numbers lie side by side"
    _remember_kernel[(triton.cdiv(steps, _BLOCK_STEPS), batch)](
        keys_values,
        keys_values.stride(0),
        keys_values.stride(1),
        remembered.ring,
        remembered.ring.stride(0),
        rows.control,
        rows.control.stride(0),
        COLUMNS_PER_TOKEN=remembered.columns_per_token,
        RING=remembered.ring.shape[-2],
        INNER=inner // 2,
        WIDTH=inner // (2 * heads),
        BLOCK_STEPS=_BLOCK_STEPS,
        BLOCK=triton.next_power_of_2(inner),
        num_warps=4,
    )


@triton.jit(do_not_specialize=STEP_SIZES)
def _remember_kernel(  # type: ignore[no-untyped-def]
    keys_values_ptr,
    row_stride,
    step_stride,
    ring_ptr,
    ring_slot_stride,
    control_ptr,
    control_stride,
    COLUMNS_PER_TOKEN: tl.constexpr,
    RING: tl.constexpr,
    INNER: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_STEPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    line = tl.program_id(1)
    fields = control_ptr + line * control_stride
    new = tl.load(fields + _NEW_TOKENS) * COLUMNS_PER_TOKEN
    done = tl.load(fields + _TOKENS_DONE) * COLUMNS_PER_TOKEN
    step = tl.program_id(0) * BLOCK_STEPS + tl.arange(0, BLOCK_STEPS)[:, None]
    number = tl.arange(0, BLOCK)[None, :]
    here = (step < new) & (number < 2 * INNER)
    given = tl.load(keys_values_ptr + line.to(tl.int64) * row_stride + step * step_stride + number, mask=here)
    values, of_head = number // INNER, number % INNER
    in_ring = (of_head // WIDTH * RING + (done + step) % RING) * (2 * WIDTH) + values * WIDTH + of_head % WIDTH
    tl.store(ring_ptr + tl.load(fields + _SLOT) * ring_slot_stride + in_ring, given, mask=here)
