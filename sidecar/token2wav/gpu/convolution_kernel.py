"""The kernel of every convolution of the vocoder: a matrix product without im2col.

A program makes a block of rows and output channels: for every tap and every block of input channels it multiplies the
rows that this tap sees with this tap's weights. What comes after the sum (bias, residual, the next layer's activation)
happens before anything is written.
"""

from __future__ import annotations

import triton
import triton.language as tl

from sidecar.token2wav.gpu.activations import activate
from sidecar.token2wav.gpu.ragged import valid_rows


@triton.jit
def _sum_over_taps(  # type: ignore[no-untyped-def]
    x, weight, position, seen, column, taps, dilation,
    C_IN: tl.constexpr, C_OUT: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """x at one line and weight at one branch; `position` (BLOCK_M,) is the row of x that the first tap sees."""
    DEPTH_BLOCKS: tl.constexpr = (C_IN + BLOCK_K - 1) // BLOCK_K
    channel = tl.arange(0, BLOCK_K)
    rows_at = x + (position[:, None] * C_IN + channel[None, :])
    weights_at = weight + (channel[:, None] * C_OUT + column[None, :])
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for step in range(0, taps * DEPTH_BLOCKS):
        # Written out, for the interpreter makes a tensor of whatever gets a name.
        inside = (position >= -(step // DEPTH_BLOCKS * dilation)) & (position < seen - step // DEPTH_BLOCKS * dilation)
        wanted = inside[:, None]
        given = (column < C_OUT)[None, :]
        if C_IN % BLOCK_K != 0:
            present = channel < C_IN - step % DEPTH_BLOCKS * BLOCK_K
            wanted = wanted & present[None, :]
            given = given & present[:, None]
        ahead = step // DEPTH_BLOCKS * dilation * C_IN + step % DEPTH_BLOCKS * BLOCK_K
        rows = tl.load(rows_at + ahead, mask=wanted, other=0.0)
        below = (step // DEPTH_BLOCKS * C_IN + step % DEPTH_BLOCKS * BLOCK_K) * C_OUT
        weights = tl.load(weights_at + below, mask=given, other=0.0)
        total = tl.dot(rows, weights, total, input_precision=PRECISION)
    return total


# What need not be known when it is compiled is not: every variant makes the first start on a machine longer.
@triton.jit(do_not_specialize=["dilation", "residual_groups"])
def convolve(  # type: ignore[no-untyped-def]
    x, weight, bias, kernels, lengths, residual, alphas, plain, activated,
    in_rows, out_rows, dilation, residual_groups,
    C_IN: tl.constexpr, C_OUT: tl.constexpr, STRIDE: tl.constexpr, SHIFT: tl.constexpr,
    IN_RATE: tl.constexpr, IN_EXTRA: tl.constexpr, OUT_RATE: tl.constexpr, OUT_EXTRA: tl.constexpr,
    RESIDUAL: tl.constexpr, PLAIN: tl.constexpr, ACTIVATION: tl.constexpr, SLOPE: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Rows and groups as `Convolution` lays them out.

    Args:
        kernels: (G, 3), each branch's first tap, taps and zeros in front.
        residual_groups: one for all groups, or G.
        SHIFT: how many numbers of the sums come out before the first row.
    """
    COLUMN_BLOCKS: tl.constexpr = (C_OUT + BLOCK_N - 1) // BLOCK_N
    group = tl.num_programs(2) - 1 - tl.program_id(2)  # the longest kernel is the last, and begins first
    line = tl.program_id(1)
    place = (group * tl.num_programs(1) + line).to(tl.int64)
    start = tl.program_id(0) // COLUMN_BLOCKS * BLOCK_M
    row = start + tl.arange(0, BLOCK_M)
    column = tl.program_id(0) % COLUMN_BLOCKS * BLOCK_N + tl.arange(0, BLOCK_N)
    seen = valid_rows(lengths, line, IN_RATE, IN_EXTRA)
    made = valid_rows(lengths, line, OUT_RATE, OUT_EXTRA)
    first_tap = tl.load(kernels + 3 * group)
    taps = tl.load(kernels + 3 * group + 1)
    padding = tl.load(kernels + 3 * group + 2)

    # A block beyond the end of its line has nothing to sum.
    total = _sum_over_taps(
        x + place * in_rows * C_IN, weight + first_tap * C_IN * C_OUT, row * STRIDE - padding, seen, column,
        tl.where(start < made, taps, 0), dilation, C_IN, C_OUT, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K,
    )  # fmt: skip
    known = column < C_OUT
    total += tl.load(bias + group * C_OUT + column, mask=known, other=0.0)[None, :]
    element = row[:, None] * C_OUT + column[None, :] - SHIFT
    kept = (row < made)[:, None] & known[None, :]
    if SHIFT > 0:
        kept = kept & (element >= 0) & (element < (made - OUT_EXTRA) * C_OUT)
    if RESIDUAL:
        of_group = tl.minimum(group, residual_groups - 1)
        residual += (of_group * tl.num_programs(1) + line).to(tl.int64) * out_rows * C_OUT
        total += tl.load(residual + element, mask=kept, other=0.0).to(tl.float32)
    if PLAIN:
        plain += place * out_rows * C_OUT
        tl.store(plain + element, total, mask=kept)
    if ACTIVATION != "none":
        alpha = 0.0
        inverse = 0.0
        if ACTIVATION == "snake":
            alpha = tl.load(alphas + 2 * group * C_OUT + column, mask=known, other=0.0)[None, :]
            inverse = tl.load(alphas + (2 * group + 1) * C_OUT + column, mask=known, other=0.0)[None, :]
        activated += place * out_rows * C_OUT
        tl.store(activated + element, activate(total, alpha, inverse, ACTIVATION, SLOPE), mask=kept)
