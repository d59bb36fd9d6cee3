"""The velocity network: a diffusion transformer (DiT, arXiv 2212.09748) with a causal convolution in each block."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sidecar.token2wav.config import EstimatorConfig

_SINUSOIDS = 128
_CONV_KERNEL_FRAMES = 3
_ADAPTIVE_NORM_EPS = 1e-6


@dataclass(frozen=True)
class Conditions:
    """What the mel should become."""

    mu: Tensor  # (B, M, T), the encoder's output
    speaker: Tensor  # (B, M)
    cond: Tensor  # (B, M, T), the prompt's mel where there is a prompt, else zeros

    def with_and_without(self) -> Conditions:
        """(2B, ...): the rows as they are, then with nothing given."""
        return Conditions(
            *(torch.cat([given, torch.zeros_like(given)]) for given in (self.mu, self.speaker, self.cond))
        )


@dataclass(frozen=True)
class Modulation:
    """The flow time, as every block uses it: shifts, scales and gates, float32, the same at all frames."""

    blocks: Tensor  # (blocks, R, 1, 9h), R flow times
    final: Tensor  # (R, 1, 2h)

    def at(self, row: int) -> Modulation:
        """One flow time of the R, to be shared by a whole batch."""
        return Modulation(self.blocks[:, row : row + 1], self.final[row : row + 1])

    def to(self, device: torch.device) -> Modulation:
        return Modulation(self.blocks.to(device), self.final.to(device))


class EstimatorPast(NamedTuple):
    """What the frames before left behind, for one flow step."""

    conv: Tensor  # (blocks, B, 2h, 2), or of one block (B, 2h, 2)
    keys_values: Tensor  # (blocks, B, H, L, 2D), or of one block (B, H, L, 2D)


def time_sinusoid(times: Tensor) -> Tensor:
    """(R,) flow times in [0, 1] -> (R, 256) float32, cosines first."""
    rates = torch.exp(
        torch.arange(_SINUSOIDS, dtype=torch.float32, device=times.device) * (-math.log(10_000.0) / _SINUSOIDS)
    )
    angles = 1000 * times.float()[:, None] * rates
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class TimeEmbedding(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(2 * _SINUSOIDS, hidden), nn.SiLU(), nn.Linear(hidden, hidden))

    def forward(self, times: Tensor) -> Tensor:
        """(R,) -> (R, h)."""
        embedded: Tensor = self.mlp(time_sinusoid(times))
        return embedded


class Attention(nn.Module):
    """Over all frames given and all remembered, with queries and keys normed; it knows no positions at all."""

    def __init__(self, config: EstimatorConfig) -> None:
        super().__init__()
        inner = config.num_heads * config.head_dim
        self.heads = config.num_heads
        self.to_q = nn.Linear(config.hidden_size, inner)
        self.to_k = nn.Linear(config.hidden_size, inner)
        self.to_v = nn.Linear(config.hidden_size, inner)
        self.q_norm = nn.LayerNorm(config.head_dim)
        self.k_norm = nn.LayerNorm(config.head_dim)
        self.proj = nn.Linear(inner, config.hidden_size)

    def forward(self, x: Tensor, past: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """x (B, T, h), past (B, H, L, 2D), mask (B, L + T) -> (B, T, h), new keys beside values (B, H, T, 2D)."""
        query = self.q_norm(self._split(self.to_q(x)))  # (B, H, T, D)
        new = torch.cat([self.k_norm(self._split(self.to_k(x))), self._split(self.to_v(x))], dim=-1)
        keys, values = torch.cat([past, new], dim=2).chunk(2, dim=-1)  # (B, H, L + T, D) each
        out = F.scaled_dot_product_attention(
            query, keys, values, attn_mask=None if mask is None else mask[:, None, None, :]
        )
        return self.proj(out.transpose(1, 2).flatten(2)), new

    def _split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)


class CausalConvolutions(nn.Module):
    """Two causal convolutions over frames; order in time enters the network only here."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        # the names in the checkpoint count the layers without weights between these
        self.block = nn.ModuleDict(
            {
                "1": nn.Conv1d(hidden, hidden, _CONV_KERNEL_FRAMES),
                "3": nn.LayerNorm(hidden),
                "6": nn.Conv1d(hidden, hidden, _CONV_KERNEL_FRAMES),
            }
        )

    def forward(self, x: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, T, h) and past (B, 2h, 2), the last inputs of the first, then of the second -> (B, T, h), new past."""
        first_past, second_past = past.chunk(2, dim=1)
        seen = torch.cat([first_past, x.transpose(1, 2)], dim=-1)  # (B, h, 2 + T)
        x = F.mish(self.block["3"](self.block["1"](seen).transpose(1, 2)))
        seen_second = torch.cat([second_past, x.transpose(1, 2)], dim=-1)
        new_past = torch.cat([seen[..., -past.shape[-1] :], seen_second[..., -past.shape[-1] :]], dim=1)
        return self.block["6"](seen_second).transpose(1, 2), new_past


class FeedForward(nn.Module):
    def __init__(self, hidden: int, ratio: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(hidden, int(hidden * ratio))
        self.fc2 = nn.Linear(int(hidden * ratio), hidden)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.gelu(self.fc1(x), approximate="tanh"))
        return out


def _modulated_norm(x: Tensor, shift: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """In the precision of x, handed on in that of the layer after it."""
    return (F.layer_norm(x, x.shape[-1:], eps=_ADAPTIVE_NORM_EPS) * (1 + scale) + shift).to(dtype)


class EstimatorBlock(nn.Module):
    """Layers in the network's precision, what is added up from block to block in float32.

    Over 16 blocks and 10 flow steps the roundings of that sum in 16 bits would cost more than all layers' own.
    """

    def __init__(self, config: EstimatorConfig) -> None:
        super().__init__()
        hidden = config.hidden_size
        self.attn = Attention(config)
        self.conv = CausalConvolutions(hidden)
        self.mlp = FeedForward(hidden, config.mlp_ratio)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden, 9 * hidden))

    def forward(
        self, x: Tensor, modulation: Tensor, past: EstimatorPast, mask: Tensor | None
    ) -> tuple[Tensor, EstimatorPast]:
        """x (B, T, h) and modulation (B or 1, 1, 9h), both float32 -> (B, T, h), and the new keys and values alone.

        The nine parts come as attention, feed-forward, convolution; they run as attention, convolution, feed-forward.
        """
        (attn_shift, attn_scale, attn_gate, mlp_shift, mlp_scale, mlp_gate, conv_shift, conv_scale, conv_gate) = (
            modulation.chunk(9, dim=-1)
        )
        dtype = past.conv.dtype
        attended, keys_values = self.attn(_modulated_norm(x, attn_shift, attn_scale, dtype), past.keys_values, mask)
        x = x + attn_gate * attended
        convolved, conv_past = self.conv(_modulated_norm(x, conv_shift, conv_scale, dtype), past.conv)
        x = x + conv_gate * convolved
        x = x + mlp_gate * self.mlp(_modulated_norm(x, mlp_shift, mlp_scale, dtype))
        return x, EstimatorPast(conv_past, keys_values)


class FinalLayer(nn.Module):
    def __init__(self, hidden: int, mel_bins: int) -> None:
        super().__init__()
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden, 2 * hidden))
        self.linear = nn.Linear(hidden, mel_bins)

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        shift, scale = modulation.chunk(2, dim=-1)
        out: Tensor = self.linear(_modulated_norm(x, shift, scale, self.linear.weight.dtype))
        return out


class Estimator(nn.Module):
    """Noisy mel and its conditions -> velocity towards the clean mel."""

    def __init__(self, config: EstimatorConfig) -> None:
        super().__init__()
        self.config = config
        self.t_embedder = TimeEmbedding(config.hidden_size)
        self.in_proj = nn.Linear(config.in_channels, config.hidden_size)
        self.blocks = nn.ModuleList(EstimatorBlock(config) for _ in range(config.depth))
        self.final_layer = FinalLayer(config.hidden_size, config.out_channels)

    def modulation(self, times: Tensor) -> Modulation:
        """What R flow times (R,) do to every block. Only K times ever occur, so this is run once and kept."""
        time = self.t_embedder(times).unsqueeze(1)  # (R, 1, h)
        blocks = [cast("EstimatorBlock", block).adaLN_modulation(time) for block in self.blocks]
        return Modulation(torch.stack(blocks), self.final_layer.adaLN_modulation(time))

    def forward(
        self, x: Tensor, given: Conditions, modulation: Modulation, past: EstimatorPast, mask: Tensor | None
    ) -> tuple[Tensor, EstimatorPast]:
        """
        Args:
            x: (B, M, T), noisy mel.
            modulation: of B flow times, or of one.
            past: L frames remembered.
            mask: (B, L + T), false where a row has no frame; None if it has all.

        Returns:
            velocity (B, M, T), and the past with the new T keys and values alone.
        """
        speaker = given.speaker[:, :, None].expand_as(x)
        together = torch.cat([x, given.mu, speaker, given.cond], dim=1)  # (B, 4M, T)
        hidden = self.in_proj(together.transpose(1, 2)).float()  # (B, T, h)
        new = []
        for row, block in enumerate(self.blocks):
            hidden, block_new = block(
                hidden, modulation.blocks[row], EstimatorPast(past.conv[row], past.keys_values[row]), mask
            )
            new.append(block_new)
        velocity = self.final_layer(hidden, modulation.final).transpose(1, 2)
        return velocity, EstimatorPast(
            torch.stack([block.conv for block in new]), torch.stack([block.keys_values for block in new])
        )

    def initial_past(self, batch: int) -> EstimatorPast:
        """Before the first frame."""
        config, empty = self.config, self.in_proj.weight
        return EstimatorPast(
            empty.new_zeros(config.depth, batch, 2 * config.hidden_size, _CONV_KERNEL_FRAMES - 1),
            empty.new_zeros(config.depth, batch, config.num_heads, 0, 2 * config.head_dim),
        )
