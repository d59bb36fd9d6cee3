"""The encoder's weights as matrices, with everything multiplied out that does not depend on the tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sidecar.timebase import FRAMES_PER_TOKEN
from sidecar.token2wav.conformer import ConformerBlock, RelativeAttention
from sidecar.token2wav.gpu.residual import Norm


@dataclass(frozen=True)
class Layer:
    """A matrix (C_out, C_in) and its bias (C_out,)."""

    weight: Tensor
    bias: Tensor

    @staticmethod
    def of(layer: nn.Linear, dtype: torch.dtype) -> Layer:
        return Layer(layer.weight.to(dtype), layer.bias.to(dtype))

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


@dataclass(frozen=True)
class BlockWeights:
    """One block of a stack."""

    norm_mha: Norm
    heads: Layer  # x -> q + u, keys, values (C each), and the g of each head (H * C)
    out: Layer
    norm_ff: Norm
    wide: Layer
    narrow: Layer

    @staticmethod
    def of(block: ConformerBlock, dtype: torch.dtype) -> BlockWeights:
        attention, feed_forward = block.self_attn, block.feed_forward
        return BlockWeights(
            norm_mha=Norm.of(block.norm_mha),
            heads=_heads_layer(attention, dtype),
            out=Layer.of(attention.linear_out, dtype),
            norm_ff=Norm.of(block.norm_ff),
            wide=Layer.of(feed_forward.w_1, dtype),
            narrow=Layer.of(feed_forward.w_2, dtype),
        )


def _heads_layer(attention: RelativeAttention, dtype: torch.dtype) -> Layer:
    """All of an attention's first products in one. g = P^T (q + w) is linear in x too, so P^T goes into its matrix."""
    heads, width = attention.pos_bias_u.shape
    query = attention.linear_q
    projection = attention.linear_pos.weight.double().view(heads, width, heads * width)
    weight = torch.einsum("hdc,hdi->hci", projection, query.weight.double().view(heads, width, -1))
    bias = torch.einsum(
        "hdc,hd->hc", projection, query.bias.double().view(heads, width) + attention.pos_bias_v.double()
    )
    # factors of sines stand between those of cosines; the kernel takes them apart
    weight, bias = (torch.cat([part[:, 0::2], part[:, 1::2]], dim=1).flatten(0, 1) for part in (weight, bias))
    others = (attention.linear_k, attention.linear_v)
    return Layer(
        torch.cat([query.weight, *(layer.weight for layer in others), weight]).to(dtype),
        torch.cat([query.bias + attention.pos_bias_u.flatten(), *(layer.bias for layer in others), bias]).to(dtype),
    )


def convolution_layer(convolution: nn.Conv1d, dtype: torch.dtype) -> Layer:
    """A convolution over tokens as a matrix (C, taps * C), for tokens that stand beside their neighbours."""
    assert convolution.bias is not None, "the encoder's convolutions have biases"
    return Layer(convolution.weight.transpose(1, 2).flatten(1).to(dtype), convolution.bias.to(dtype))


def upsample_layer(convolution: nn.Conv1d, dtype: torch.dtype) -> Layer:
    """The convolution over doubled tokens as one over tokens t - 2, t - 1, t: (2C, 3C), both frames of t at once."""
    assert convolution.bias is not None, "the encoder's convolutions have biases"
    taps = convolution.weight.float().unbind(dim=2)  # 5 of (C_out, C_in), the last for the frame itself
    frames = []
    for part in range(FRAMES_PER_TOKEN):
        tokens = [torch.zeros_like(taps[0]) for _ in range(3)]
        for tap, weight in enumerate(taps):
            # counted from the first frame of token t - 2
            tokens[(part + tap) // FRAMES_PER_TOKEN] += weight
        frames.append(torch.cat(tokens, dim=1))
    return Layer(torch.cat(frames).to(dtype), convolution.bias.repeat(FRAMES_PER_TOKEN).to(dtype))
