"""Layer norms of the encoder and the float32 sum between its layers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from sidecar.token2wav.gpu.norms import rows_a_program, standardized
from sidecar.token2wav.gpu.rows import STEP_SIZES


@dataclass(frozen=True)
class Norm:
    """A layer norm's weights (C,) in float32."""

    weight: Tensor
    bias: Tensor
    eps: float

    @staticmethod
    def of(layer: nn.LayerNorm, *, factor: float = 1.0) -> Norm:
        """Of a layer whose outcome is taken times `factor`."""
        return Norm(layer.weight.float() * factor, layer.bias.float() * factor, layer.eps)


def normed(x: Tensor, norm: Norm, dtype: torch.dtype, *, delta: Tensor | None = None) -> Tensor:
    """norm(x) in `dtype`; with `delta` that is added to x, in place, before.

    Args:
        x: (..., C) contiguous, float32 where there is a delta.
        delta: as x, of any precision.
    """
    out = torch.empty_like(x, dtype=dtype)
    channels = x.shape[-1]
    count = x.numel() // channels
    many = rows_a_program(count, x.device)
    _normed_kernel[(triton.cdiv(count, many),)](
        x,
        x if delta is None else delta,
        norm.weight,
        norm.bias,
        out,
        count,
        ADD=delta is not None,
        EPS=norm.eps,
        C=channels,
        BLOCK=triton.next_power_of_2(channels),
        ROWS=many,
        num_warps=4,
    )
    return out


@triton.jit(do_not_specialize=STEP_SIZES)
def _normed_kernel(  # type: ignore[no-untyped-def]
    x_ptr,
    delta_ptr,
    weight_ptr,
    bias_ptr,
    out_ptr,
    count,
    ADD: tl.constexpr,
    EPS: tl.constexpr,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    channel = tl.arange(0, BLOCK)[None, :]
    inside = (row < count) & (channel < C)
    at = row * C + channel
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        x += tl.load(delta_ptr + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(x_ptr + at, x, mask=inside)
    weight = tl.load(weight_ptr + channel, mask=channel < C, other=0.0)
    bias = tl.load(bias_ptr + channel, mask=channel < C, other=0.0)
    y = standardized(x, inside, C, EPS) * weight + bias
    tl.store(out_ptr + at, y.to(out_ptr.dtype.element_ty), mask=inside)
