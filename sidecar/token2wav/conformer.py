"""The encoder's transformer block: attention that knows how far away a key is (Transformer-XL, arXiv 1901.02860)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sidecar.token2wav.config import EncoderConfig

#: The norms inside a block add this to the variance: nothing at all in 16 bits, so those norms run in float32.
_BLOCK_NORM_EPS = 1e-12


class Float32Norm(nn.LayerNorm):
    """Layer norm computed in float32 whatever the precision of its input, handed on in that of its weights."""

    def forward(self, x: Tensor) -> Tensor:
        wide = F.layer_norm(x.float(), self.normalized_shape, self.weight.float(), self.bias.float(), self.eps)
        return wide.to(self.weight.dtype)


def position_angles(positions: Tensor, channels: int) -> tuple[Tensor, Tensor]:
    """Cosine and sine of position times frequency, frequency m being 10000^(-2m/channels).

    The angles are made in float64: after ten minutes a position is 30,000, where float32 has lost three digits.

    Args:
        positions: (B, n) integers.

    Returns:
        cosines and sines, (B, n, channels / 2) float32 each.
    """
    pair = torch.arange(channels // 2, dtype=torch.float64, device=positions.device)
    angles = positions.double().unsqueeze(-1) * torch.exp(pair * (-2 * math.log(10_000.0) / channels))
    return angles.cos().float(), angles.sin().float()


class RelativeAttention(nn.Module):
    """Self-attention whose score has a second part, for the distance between query and key.

    With q, k the projected query and key at positions a and j, u and w learnt, and s(r) the sinusoid of a distance:

        score = ((q + u) . k + (q + w) . P s(a - j)) / sqrt(D)

    The usual way makes P s(r) anew for every distance. Here g = P^T (q + w) is turned by the angle of a instead, since
    the sine and cosine of a difference are a rotation: g . s(a - j) = turned(g, a) . [cos j, sin j]. That holds for
    any set of keys in any order, costs nothing that grows with the distance, and needs no table that ends somewhere.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.pos_bias_u = nn.Parameter(torch.empty(heads, channels // heads))
        self.pos_bias_v = nn.Parameter(torch.empty(heads, channels // heads))
        self.linear_q = nn.Linear(channels, channels)
        self.linear_k = nn.Linear(channels, channels)
        self.linear_v = nn.Linear(channels, channels)
        self.linear_out = nn.Linear(channels, channels)
        self.linear_pos = nn.Linear(channels, channels, bias=False)

    def forward(
        self, x: Tensor, past: Tensor, angles: tuple[Tensor, Tensor], mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """
        Args:
            x: (B, N, C) the new steps.
            past: (B, H, n, 2D) keys beside values of the steps before.
            angles: `position_angles` of past and new steps, (B, n + N, C / 2) each.
            mask: (B, n + N), true where there is a key; None if all are there.

        Returns:
            (B, N, C), and keys beside values of the new steps (B, H, N, 2D).
        """
        query = self._split(self.linear_q(x))  # (B, H, N, D)
        new = torch.cat([self._split(self.linear_k(x)), self._split(self.linear_v(x))], dim=-1)
        keys, values = torch.cat([past, new], dim=2).chunk(2, dim=-1)  # (B, H, n + N, D) each
        bias = self._position_scores(query, angles) / math.sqrt(query.shape[-1])  # (B, H, N, n + N)
        if mask is not None:
            bias = bias.masked_fill(~mask[:, None, None, :], -math.inf)
        out = F.scaled_dot_product_attention(query + self.pos_bias_u[:, None], keys, values, attn_mask=bias)
        return self.linear_out(out.transpose(1, 2).flatten(2)), new

    def _position_scores(self, query: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
        heads, width = self.pos_bias_v.shape
        projection = self.linear_pos.weight.view(heads, width, heads * width)
        turned = (query + self.pos_bias_v[:, None]) @ projection  # (B, H, N, C): g above
        for_sine, for_cosine = turned[..., 0::2], turned[..., 1::2]
        cosine, sine = (angle.to(query.dtype) for angle in angles)
        own_cosine, own_sine = (angle[:, None, -query.shape[2] :] for angle in (cosine, sine))
        turned = torch.cat(
            [for_sine * own_sine + for_cosine * own_cosine, for_cosine * own_sine - for_sine * own_cosine], dim=-1
        )
        return turned @ torch.cat([cosine, sine], dim=-1).transpose(1, 2).unsqueeze(1)

    def _split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)  # (B, H, N, D)


class FeedForward(nn.Module):
    def __init__(self, channels: int, units: int) -> None:
        super().__init__()
        self.w_1 = nn.Linear(channels, units)
        self.w_2 = nn.Linear(units, channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.w_2(F.silu(self.w_1(x)))
        return out


class ConformerBlock(nn.Module):
    """Attention, then feed-forward, each normed before and added after. (No convolution: that part is switched off.)

    What is added up from block to block is float32, whatever the layers' precision.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.self_attn = RelativeAttention(config.output_size, config.attention_heads)
        self.feed_forward = FeedForward(config.output_size, config.linear_units)
        self.norm_mha = Float32Norm(config.output_size, eps=_BLOCK_NORM_EPS)
        self.norm_ff = Float32Norm(config.output_size, eps=_BLOCK_NORM_EPS)

    def forward(
        self, x: Tensor, past: Tensor, angles: tuple[Tensor, Tensor], mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """As `RelativeAttention.forward`, with x in float32."""
        attended, new = self.self_attn(self.norm_mha(x), past, angles, mask)
        x = x + attended
        return x + self.feed_forward(self.norm_ff(x)), new
