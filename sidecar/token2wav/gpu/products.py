"""Matrix products that finish what they give: one kernel where product, bias and what follows would be three."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from sidecar.timebase import FRAMES_PER_TOKEN
from sidecar.token2wav.gpu.norms import standardized
from sidecar.token2wav.gpu.rows import STEP_SIZES, Field, Rows

_SLOT = tl.constexpr(int(Field.SLOT))
_NEW_TOKENS = tl.constexpr(int(Field.NEW_TOKENS))
_TOKENS_DONE = tl.constexpr(int(Field.TOKENS_DONE))
_FRAMES_PER_TOKEN = tl.constexpr(FRAMES_PER_TOKEN)
_NORM_EPS = tl.constexpr(1e-5)
_SQRT_2_OVER_PI = tl.constexpr(0.7978845608028654)

#: Up to so many rows, and numbers in each, small blocks here are quicker than cuBLAS.
_FEW_ROWS = 128
_FEW_ROWS_INNER = 1536
#: From so many rows on, cuBLAS multiplies and another kernel finishes the heads.
CUBLAS_HEADS_ROWS = 1024
_FINISHED_ROWS = 64  # of a program of that kernel


@dataclass(frozen=True)
class HeadWeights:
    """Queries, keys and values of one block."""

    weight: Tensor  # (3 H D, h)
    bias: Tensor  # (3 H D,)
    norm_weight: Tensor  # (2, D), of queries and of keys
    norm_bias: Tensor  # (2, D)
    heads: int


@triton.jit
def _product(  # type: ignore[no-untyped-def]
    x, weight, row, rows, column, there,
    K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Rows `row` of x (rows, K) times rows `column` of weight (N, K) where `there`, in float32."""
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        a = tl.load(x + row[:, None] * K + k[None, :], mask=(row[:, None] < rows) & (k[None, :] < K), other=0.0)
        b = tl.load(weight + column[None, :] * K + k[:, None], mask=there[None, :] & (k[:, None] < K), other=0.0)
        total = tl.dot(a, b, total, input_precision="ieee")
    return total


@triton.jit(do_not_specialize=STEP_SIZES)
def _linear(  # type: ignore[no-untyped-def]
    x, weight, bias, out, rows,
    GELU: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    y = _product(x, weight, row, rows, column, column < N, K, BLOCK_M, BLOCK_N, BLOCK_K)
    y += tl.load(bias + column, mask=column < N, other=0.0).to(tl.float32)[None, :]
    if GELU:  # (1 + tanh(u)) / 2 = sigmoid(2 u)
        y = y * tl.sigmoid(2 * _SQRT_2_OVER_PI * (y + 0.044715 * y * y * y))
    inside = (row[:, None] < rows) & (column[None, :] < N)
    tl.store(out + row[:, None] * N + column[None, :], y, mask=inside)


@triton.jit
def _finish_heads(  # type: ignore[no-untyped-def]
    y, row, kind, head, norm_weight, norm_bias, query, ring, control,
    rows, frames, batch, line, slot_stride, guidance_stride,
    RING: tl.constexpr, H: tl.constexpr, D: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """y (rows, BLOCK_N) of one head: queries and keys normed; queries written, keys and values put into the ring."""
    number = tl.arange(0, BLOCK_N)
    there = number < D
    inside = (row[:, None] < rows) & there[None, :]
    if kind < 2:
        scale = tl.load(norm_weight + kind * D + number, mask=there, other=0.0)[None, :]
        shift = tl.load(norm_bias + kind * D + number, mask=there, other=0.0)[None, :]
        y = standardized(y, inside, D, _NORM_EPS) * scale + shift
    if kind == 0:
        tl.store(query + row[:, None] * (H * D) + head * D + number[None, :], y, mask=inside)
    else:
        at = row // frames
        guidance = at // batch
        stream = control + (at - guidance * batch) * line
        new = tl.load(stream + _NEW_TOKENS, mask=row < rows, other=0).to(tl.int32) * _FRAMES_PER_TOKEN
        kept = row - at * frames < new
        slot = tl.load(stream + _SLOT, mask=kept, other=0)
        done = tl.load(stream + _TOKENS_DONE, mask=kept, other=0).to(tl.int32) * _FRAMES_PER_TOKEN
        place = (done + row - at * frames) % RING
        into = slot * slot_stride + guidance * guidance_stride + (head * RING + place) * (2 * D) + (kind - 1) * D
        tl.store(ring + into[:, None] + number[None, :], y, mask=kept[:, None] & there[None, :])


@triton.jit(do_not_specialize=STEP_SIZES)
def _heads_product(  # type: ignore[no-untyped-def]
    x, weight, bias, norm_weight, norm_bias, query, ring, control,
    rows, frames, batch, line, slot_stride, guidance_stride,
    RING: tl.constexpr, H: tl.constexpr, D: tl.constexpr, K: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    number = tl.arange(0, BLOCK_N)
    column = tl.program_id(1) * D + number
    there = number < D
    y = _product(x, weight, row, rows, column, there, K, BLOCK_M, BLOCK_N, BLOCK_K)
    y += tl.load(bias + column, mask=there, other=0.0).to(tl.float32)[None, :]
    kind = tl.program_id(1) // H  # queries, keys, values
    _finish_heads(
        y, row, kind, tl.program_id(1) % H, norm_weight, norm_bias, query, ring, control,
        rows, frames, batch, line, slot_stride, guidance_stride, RING, H, D, BLOCK_N,
    )  # fmt: skip


@triton.jit(do_not_specialize=STEP_SIZES)
def _heads_of(  # type: ignore[no-untyped-def]
    product, norm_weight, norm_bias, query, ring, control,
    rows, frames, batch, line, slot_stride, guidance_stride,
    RING: tl.constexpr, H: tl.constexpr, D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    number = tl.arange(0, BLOCK_N)
    inside = (row[:, None] < rows) & (number[None, :] < D)
    at = row[:, None] * (3 * H * D) + tl.program_id(1) * D + number[None, :]
    y = tl.load(product + at, mask=inside, other=0.0).to(tl.float32)
    kind = tl.program_id(1) // H  # queries, keys, values
    _finish_heads(
        y, row, kind, tl.program_id(1) % H, norm_weight, norm_bias, query, ring, control,
        rows, frames, batch, line, slot_stride, guidance_stride, RING, H, D, BLOCK_N,
    )  # fmt: skip


def linear(x: Tensor, weight: Tensor, bias: Tensor, *, gelu: bool = False) -> Tensor:
    """x @ weight.T + bias, or gelu of that by tanh; x (rows, K), weight (N, K) -> (rows, N)."""
    (rows, inner), columns = x.shape, len(weight)
    few = rows <= _FEW_ROWS and inner <= _FEW_ROWS_INNER and x.dtype != torch.float32
    if x.is_cuda and not few:
        return torch._addmm_activation(bias, x, weight.t(), use_gelu=True) if gelu else F.linear(x, weight, bias)
    out = x.new_empty(rows, columns)
    blocks = _linear_blocks(x, columns)
    grid = (triton.cdiv(rows, blocks["BLOCK_M"]), triton.cdiv(columns, blocks["BLOCK_N"]))
    _linear[grid](x, weight, bias, out, rows, GELU=gelu, N=columns, K=inner, **blocks)
    return out


def heads_product(x: Tensor, weights: HeadWeights, ring: Tensor, rows: Rows) -> Tensor:
    """Queries, returned; and keys and values, put into the ring for the frames that a stream really has.

    Queries and keys are normed within each head.

    Args:
        x: (2 B T, h), with the conditions, then without.
        ring: (S, 2, H, ring, 2D), strided along S; axis 1 is guidance.

    Returns:
        (2B, T, H D)
    """
    count, inner = x.shape
    _, _, heads, columns, width = ring.shape
    query = x.new_empty(2 * rows.batch, rows.frames, heads * width // 2)
    norms = (weights.norm_weight, weights.norm_bias)
    places = (
        query, ring, rows.control,
        count, rows.frames, rows.batch, rows.control.stride(0), ring.stride(0), ring.stride(1),
    )  # fmt: skip
    sizes = {"RING": columns, "H": heads, "D": width // 2}
    blocks = _heads_blocks(x, width // 2)
    if count < CUBLAS_HEADS_ROWS:
        _heads_product[(triton.cdiv(count, blocks["BLOCK_M"]), 3 * heads)](
            x, weights.weight, weights.bias, *norms, *places, **sizes, K=inner, **blocks
        )
    else:
        product = F.linear(x, weights.weight, weights.bias)
        _heads_of[(triton.cdiv(count, _FINISHED_ROWS), 3 * heads)](
            product, *norms, *places, **sizes, BLOCK_M=_FINISHED_ROWS, BLOCK_N=blocks["BLOCK_N"], num_warps=4
        )
    return query


def _linear_blocks(x: Tensor, columns: int) -> dict[str, int]:
    """So small that a GPU's 132 processors all have some."""
    rows, inner = x.shape
    if x.device.type == "cpu":
        return _interpreted(columns)
    if columns > inner and rows > 64:
        return {"BLOCK_M": 64, "BLOCK_N": 32, "BLOCK_K": 64, "num_warps": 4, "num_stages": 5}
    depth = {"BLOCK_K": 128, "num_stages": 3} if inner <= 512 else {"BLOCK_K": 64, "num_stages": 5}
    return {"BLOCK_M": 16, "BLOCK_N": 32, "num_warps": 4, **depth}


def _heads_blocks(x: Tensor, width: int) -> dict[str, int]:
    """A whole head a block, of the fewer rows the fewer there are.

    Products in float32 stay small: they are not made by tensor cores and would not fit the registers.
    """
    rows = len(x)
    if x.device.type == "cpu":
        return _interpreted(width)
    if x.dtype == torch.float32:
        sizes = {"BLOCK_M": 32, "BLOCK_K": 32, "num_stages": 3}
    elif rows <= _FEW_ROWS:
        sizes = {"BLOCK_M": 16 if rows <= 64 else 32, "BLOCK_K": 128, "num_stages": 3}
    else:
        sizes = {"BLOCK_M": 64, "BLOCK_K": 64, "num_stages": 4}
    return {"BLOCK_N": _power(width), "num_warps": 4, **sizes}


def _interpreted(columns: int) -> dict[str, int]:
    """The interpreter pays for each program, not for its size."""
    return {"BLOCK_M": 256, "BLOCK_N": _power(columns), "BLOCK_K": 256}


def _power(columns: int) -> int:
    """What holds so many columns, of which a product on tensor cores takes 16 at least."""
    return max(16, int(triton.next_power_of_2(columns)))
