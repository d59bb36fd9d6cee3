"""Embedded speech tokens (25 Hz) -> the encoder's output (50 Hz): look-ahead, a stack, times two, a second stack."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sidecar.timebase import FRAMES_PER_TOKEN
from sidecar.token2wav.config import EncoderConfig
from sidecar.token2wav.conformer import ConformerBlock, Float32Norm, position_angles
from sidecar.token2wav.state import EncoderState

#: A frame hears this many tokens after its own; a chunk that is not the last brings them without yielding them.
LOOKAHEAD_TOKENS = 3


class InputLayer(nn.Module):
    """sqrt(C) times the norm of a projection; the position is put in by the attention, not here."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.out = nn.Sequential(nn.Linear(channels, channels), nn.LayerNorm(channels))

    def forward(self, x: Tensor) -> Tensor:
        """In any precision, to float32."""
        out: Tensor = self.out(x).float() * math.sqrt(x.shape[-1])
        return out


class LookAhead(nn.Module):
    """Two convolutions over time, added to their input: one that sees 3 tokens ahead, one that sees 2 back."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(channels, channels, LOOKAHEAD_TOKENS + 1)
        self.conv2 = nn.Conv1d(channels, channels, 3)

    def forward(self, x: Tensor, past: Tensor, *, last: bool) -> tuple[Tensor, Tensor]:
        """x (B, N, C), past (B, C, 2) -> (B, N - 3, C), or (B, N, C) if last, with nothing ahead; and the new past."""
        if last:
            x = F.pad(x, (0, 0, 0, LOOKAHEAD_TOKENS))
        ahead = F.leaky_relu(self.conv1(x.transpose(1, 2).to(past.dtype)))  # (B, C, N - 3)
        seen = torch.cat([past, ahead], dim=-1)
        return x[:, :-LOOKAHEAD_TOKENS] + self.conv2(seen).transpose(1, 2), seen[..., -past.shape[-1] :].clone()


class Upsample(nn.Module):
    """Every step twice, then a causal convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels, channels, 2 * FRAMES_PER_TOKEN + 1)

    def forward(self, x: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, C, N) and past (B, C, 4) -> (B, C, 2N), and the new past."""
        seen = torch.cat([past, x.repeat_interleave(FRAMES_PER_TOKEN, dim=-1)], dim=-1)
        return self.conv(seen), seen[..., -past.shape[-1] :].clone()


class UpsampleEncoder(nn.Module):
    """The whole encoder. Within a chunk every step sees every other; before the chunk, what the state holds."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        channels = config.output_size
        self.embed = InputLayer(channels)
        self.pre_lookahead_layer = LookAhead(channels)
        self.encoders = nn.ModuleList(ConformerBlock(config) for _ in range(config.num_blocks))
        self.up_layer = Upsample(channels)
        self.up_embed = InputLayer(channels)
        self.up_encoders = nn.ModuleList(ConformerBlock(config) for _ in range(config.num_up_blocks))
        self.after_norm = Float32Norm(channels)
        self.heads = config.attention_heads

    def initial_state(self, batch: int) -> EncoderState:
        empty = self.after_norm.weight
        channels = empty.shape[0]
        keys_values = (batch, self.heads, 0, 2 * channels // self.heads)
        return EncoderState(
            lookahead_past=empty.new_zeros(batch, channels, self.pre_lookahead_layer.conv2.kernel_size[0] - 1),
            upsample_past=empty.new_zeros(batch, channels, self.up_layer.conv.kernel_size[0] - 1),
            token_keys_values=empty.new_zeros(len(self.encoders), *keys_values),
            frame_keys_values=empty.new_zeros(len(self.up_encoders), *keys_values),
            tokens=((),) * batch,
        )

    def forward(
        self, x: Tensor, past: EncoderState, positions: Tensor, mask: Tensor | None, *, last: bool
    ) -> tuple[Tensor, EncoderState]:
        """
        Args:
            x: (B, N, C) rows of the embedding; unless `last`, the final 3 only serve as look-ahead.
            past: the state before, n tokens cached.
            positions: (B, n + N') int64 of the cached and the N' new tokens (N' = N if last, else N - 3).
            mask: (B, n + N'), false where a row has no token; None if it has all.

        Returns:
            (B, 2 N', C), and a state that holds the new keys and values alone (its `tokens` is for the caller to fill).
        """
        x, lookahead_past = self.pre_lookahead_layer(self.embed(x), past.lookahead_past, last=last)
        x, token_keys_values = _through(self.encoders, x, past.token_keys_values, positions, mask)
        x, upsample_past = self.up_layer(x.transpose(1, 2).to(past.upsample_past.dtype), past.upsample_past)
        parts = torch.arange(FRAMES_PER_TOKEN, device=positions.device)
        frames = (positions[..., None] * FRAMES_PER_TOKEN + parts).flatten(1)
        frame_mask = None if mask is None else mask.repeat_interleave(FRAMES_PER_TOKEN, dim=1)
        x, frame_keys_values = _through(
            self.up_encoders, self.up_embed(x.transpose(1, 2)), past.frame_keys_values, frames, frame_mask
        )
        return self.after_norm(x), EncoderState(lookahead_past, upsample_past, token_keys_values, frame_keys_values, ())


def _through(
    blocks: nn.ModuleList | Sequence[ConformerBlock], x: Tensor, past: Tensor, positions: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    angles = position_angles(positions, x.shape[-1])
    new = []
    for block, block_past in zip(blocks, past, strict=True):
        x, keys_values = block(x, block_past, angles, mask)
        new.append(keys_values)
    return x, torch.stack(new)
