"""The encoder's convolutions over tokens as matrix products: each token beside those after it, or before it.

The convolution after the upsampling sees every token twice, as two equal frames. What it makes of them is what a
convolution over tokens makes that gives both frames at once, so its windows are made of tokens as well.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from sidecar.token2wav.gpu.norms import standardized
from sidecar.token2wav.gpu.residual import Norm
from sidecar.token2wav.gpu.rows import STEP_SIZES, Field, Rows
from sidecar.token2wav.upsample_encoder import LOOKAHEAD_TOKENS

#: Tokens that the two causal convolutions see before each token.
PAST_TOKENS_SEEN = 2

_SLOT = tl.constexpr(Field.SLOT.value)
_NEW_TOKENS = tl.constexpr(Field.NEW_TOKENS.value)
_LAST = tl.constexpr(Field.LAST.value)
_LOOKAHEAD = tl.constexpr(LOOKAHEAD_TOKENS)
_SEEN = tl.constexpr(PAST_TOKENS_SEEN)
_LEAKY_SLOPE = tl.constexpr(0.01)  # torch's

_BLOCK_CHANNELS = 32


def norm_to_ahead(embedded: Tensor, norm: Norm, rows: Rows) -> tuple[Tensor, Tensor]:
    """The normed tokens, and each beside the 3 after it, which are zeros after a stream's very last token.

    Args:
        embedded: (B, N + 3, C).

    Returns:
        (B, N, C) float32, and (B, N, 4C) in the precision of `embedded`.
    """
    batch, given, channels = embedded.shape
    tokens = given - LOOKAHEAD_TOKENS
    x = embedded.new_empty(batch, tokens, channels, dtype=torch.float32)
    windows = embedded.new_empty(batch, tokens, (LOOKAHEAD_TOKENS + 1) * channels)
    _norm_to_ahead_kernel[(given, batch)](
        embedded,
        norm.weight,
        norm.bias,
        x,
        windows,
        rows.control,
        rows.control.stride(0),
        tokens,
        EPS=norm.eps,
        C=channels,
        BLOCK=triton.next_power_of_2(channels),
        num_warps=4,
    )
    return x, windows


def leaky_to_windows(x: Tensor, past: Tensor, rows: Rows) -> Tensor:
    """Leaky ReLU of x (B, N, C), each token beside the two before it; `past` (S, C, 2) is read and renewed."""
    return _to_windows(x, None, past, rows, x.dtype)


def sum_to_windows(x: Tensor, delta: Tensor, past: Tensor, rows: Rows) -> Tensor:
    """x + delta (B, N, C), in the precision of delta; else as `leaky_to_windows`. `past` (S, C, 4) holds frames."""
    return _to_windows(x, delta, past, rows, delta.dtype)


def _to_windows(x: Tensor, delta: Tensor | None, past: Tensor, rows: Rows, dtype: torch.dtype) -> Tensor:
    batch, tokens, channels = x.shape
    windows = x.new_empty(batch, tokens, (PAST_TOKENS_SEEN + 1) * channels, dtype=dtype)
    _to_windows_kernel[(triton.cdiv(channels, _BLOCK_CHANNELS), batch)](
        x,
        x if delta is None else delta,
        past,
        windows,
        rows.control,
        rows.control.stride(0),
        tokens,
        LEAKY=delta is None,
        PAST=past.shape[2],
        C=channels,
        BLOCK_N=triton.next_power_of_2(tokens),
        BLOCK_C=_BLOCK_CHANNELS,
        num_warps=4,
    )
    return windows


@triton.jit(do_not_specialize=STEP_SIZES)
def _norm_to_ahead_kernel(  # type: ignore[no-untyped-def]
    embedded_ptr,
    weight_ptr,
    bias_ptr,
    x_ptr,
    windows_ptr,
    control_ptr,
    control_stride,
    tokens,
    EPS: tl.constexpr,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
):
    token, line = tl.program_id(0), tl.program_id(1)
    fields = control_ptr + line * control_stride
    channel = tl.arange(0, BLOCK)
    inside = channel < C
    embedded = tl.load(embedded_ptr + (line * (tokens + _LOOKAHEAD) + token) * C + channel, mask=inside, other=0.0)
    weight = tl.load(weight_ptr + channel, mask=inside, other=0.0)
    bias = tl.load(bias_ptr + channel, mask=inside, other=0.0)
    x = standardized(embedded.to(tl.float32)[None, :], inside[None, :], C, EPS) * weight[None, :] + bias[None, :]
    x = tl.reshape(x, (BLOCK,))
    tl.store(x_ptr + (line * tokens + token) * C + channel, x, mask=inside & (token < tokens))
    beyond = (tl.load(fields + _LAST) > 0) & (token >= tl.load(fields + _NEW_TOKENS))
    x = tl.where(beyond, 0.0, x).to(windows_ptr.dtype.element_ty)
    for ahead in tl.static_range(_LOOKAHEAD + 1):
        seer = token - ahead
        at = ((line * tokens + seer) * (_LOOKAHEAD + 1) + ahead) * C + channel
        tl.store(windows_ptr + at, x, mask=inside & (seer >= 0) & (seer < tokens))


@triton.jit(do_not_specialize=STEP_SIZES)
def _to_windows_kernel(  # type: ignore[no-untyped-def]
    x_ptr,
    delta_ptr,
    past_ptr,
    windows_ptr,
    control_ptr,
    control_stride,
    tokens,
    LEAKY: tl.constexpr,
    PAST: tl.constexpr,
    C: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One program reads and renews the past of its channels, so no other one needs to wait for it."""
    line = tl.program_id(1)
    fields = control_ptr + line * control_stride
    new = tl.load(fields + _NEW_TOKENS)
    channel = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = channel < C
    past = past_ptr + tl.load(fields + _SLOT) * (C * PAST) + channel * PAST
    alive = inside & (new > 0)
    before = tl.load(past, mask=alive, other=0.0)  # two tokens before the first; with 4 frames kept, its first frame
    just_before = tl.load(past + PAST // _SEEN, mask=alive, other=0.0)

    token = tl.arange(0, BLOCK_N)
    here = (token[:, None] < tokens) & inside[None, :]
    at = (line * tokens + token[:, None]) * C + channel[None, :]
    x = tl.load(x_ptr + at, mask=here, other=0.0).to(tl.float32)
    if LEAKY:
        x = tl.where(x > 0, x, x * _LEAKY_SLOPE)
    else:
        x += tl.load(delta_ptr + at, mask=here, other=0.0).to(tl.float32)
    x = x.to(windows_ptr.dtype.element_ty)

    row = windows_ptr + (line * tokens + token[:, None]) * ((_SEEN + 1) * C) + channel[None, :]
    tl.store(row + _SEEN * C, x, mask=here)
    tl.store(row + ((_SEEN + 1) + 1) * C, x, mask=here & (token[:, None] + 1 < tokens))
    tl.store(row + 2 * (_SEEN + 1) * C, x, mask=here & (token[:, None] + 2 < tokens))
    first = windows_ptr + line * tokens * ((_SEEN + 1) * C) + channel
    tl.store(first, before, mask=inside)
    tl.store(first + C, just_before, mask=inside)
    tl.store(first + (_SEEN + 1) * C, just_before, mask=inside & (tokens > 1))

    # a thread may hold channels whose past another thread has yet to read
    tl.debug_barrier()
    for column in tl.static_range(PAST):
        newest = new - _SEEN + column // (PAST // _SEEN)
        tl.store(past + column, just_before, mask=alive & (newest < 0))
        kept = here & (token[:, None] == newest)
        tl.store(past[None, :] + column + tl.zeros_like(token)[:, None], x, mask=kept & alive[None, :])
