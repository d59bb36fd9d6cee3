"""The upsampling encoder in few kernels: its stacks of blocks, and what stands before and between them."""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sidecar.timebase import FRAMES_PER_TOKEN
from sidecar.token2wav.conformer import ConformerBlock
from sidecar.token2wav.flow import FlowNetwork
from sidecar.token2wav.gpu.attention import RelativePositions, Remembered, attend
from sidecar.token2wav.gpu.encoder_weights import BlockWeights, Layer, convolution_layer, upsample_layer
from sidecar.token2wav.gpu.positions import new_angles, position_table, turns_per_position
from sidecar.token2wav.gpu.remember import remember
from sidecar.token2wav.gpu.residual import Norm, normed
from sidecar.token2wav.gpu.rows import Field, Rows
from sidecar.token2wav.gpu.slots import Slots
from sidecar.token2wav.gpu.token_windows import leaky_to_windows, norm_to_ahead, sum_to_windows
from sidecar.token2wav.history import PAST_TOKENS
from sidecar.token2wav.upsample_encoder import InputLayer

#: A voice's recording has 30 s at most, of 25 tokens; the table of positions ends there.
LONGEST_PROMPT_TOKENS = 750


class FusedEncoder:
    """Embedding, `UpsampleEncoder` and projection, with their weights laid out anew.

    Args:
        most_tokens: new tokens of a chunk at most.
        past_tokens: that a stream still attends to, besides its prompt.
    """

    def __init__(
        self, network: FlowNetwork, dtype: torch.dtype, *, most_tokens: int, past_tokens: int = PAST_TOKENS
    ) -> None:
        encoder = network.encoder
        places = FRAMES_PER_TOKEN * max(LONGEST_PROMPT_TOKENS, past_tokens + most_tokens)
        positions = _Positions(places, encoder.after_norm.weight, dtype)
        self.dtype = dtype
        self._embedding = network.input_embedding.weight.to(dtype)
        self._embed, self._embed_norm = _input_layer(encoder.embed, dtype)
        self._ahead = convolution_layer(encoder.pre_lookahead_layer.conv1, dtype)
        self._behind = convolution_layer(encoder.pre_lookahead_layer.conv2, dtype)
        self._tokens = _Stack(encoder.encoders, positions, encoder.heads, past_tokens, Field.VOICE_TOKENS, 1)
        self._upsample = upsample_layer(encoder.up_layer.conv, dtype)
        self._up_embed, self._up_embed_norm = _input_layer(encoder.up_embed, dtype)
        self._frames = _Stack(
            encoder.up_encoders, positions, encoder.heads, past_tokens, Field.VOICE_UPSAMPLED, FRAMES_PER_TOKEN
        )
        self._after_norm = Norm.of(encoder.after_norm)
        self._project = Layer.of(network.encoder_proj, dtype)

    def __call__(self, rows: Rows, slots: Slots) -> Tensor:
        """mu (B, T, M) of each line's new tokens, T = 2N; what is remembered of them goes into the slots.

        Frames beyond a line's own mean nothing.
        """
        embedded = self._embed(F.embedding(rows.token_ids, self._embedding))  # (B, N + 3, C)
        x, windows = norm_to_ahead(embedded, self._embed_norm, rows)
        delta = self._behind(leaky_to_windows(self._ahead(windows), slots.lookahead_past, rows))
        delta = self._tokens(x, delta, slots.tokens, rows)
        windows = sum_to_windows(x, delta, slots.upsample_past, rows)
        frames = self._upsample(windows).view(rows.batch, rows.frames, -1)  # (B, N, 2C) is (B, T, C)
        x = normed(self._up_embed(frames), self._up_embed_norm, torch.float32)
        delta = self._frames(x, None, slots.upsampled, rows)
        return self._project(normed(x, self._after_norm, self.dtype, delta=delta))


class _Positions:
    """What both stacks know of positions: the table, and how to make the angles of a step's own."""

    def __init__(self, places: int, like: Tensor, dtype: torch.dtype) -> None:
        self.table = position_table(places, len(like), dtype, like.device)
        self._turns = turns_per_position(len(like), like.device)

    def angles(self, rows: Rows, columns_per_token: int) -> Tensor:
        return new_angles(rows, self._turns, columns_per_token=columns_per_token)


class _Stack:
    """Blocks one after another, all at one rate: `columns_per_token` steps a token."""

    def __init__(
        self,
        blocks: nn.ModuleList,
        positions: _Positions,
        heads: int,
        past_tokens: int,
        voice: Field,
        columns_per_token: int,
    ) -> None:
        self._blocks = [BlockWeights.of(cast("ConformerBlock", block), positions.table.dtype) for block in blocks]
        self._positions = positions
        self._heads = heads
        self._window = past_tokens * columns_per_token
        self._voice = voice
        self._columns_per_token = columns_per_token

    def __call__(self, x: Tensor, delta: Tensor | None, rings: Tensor, rows: Rows) -> Tensor:
        """x + delta (B, T, C) through all blocks; rings (S, blocks, H, ring, 2D).

        What is added up stays in x, float32; the last block's part is given back, for the caller to add.
        """
        dtype, angles = self._positions.table.dtype, self._positions.angles(rows, self._columns_per_token)
        for place, block in enumerate(self._blocks):
            remembered = Remembered(rings[:, place], self._voice, place, self._columns_per_token, self._window)
            delta = self._attended(block, normed(x, block.norm_mha, dtype, delta=delta), angles, remembered, rows)
            delta = block.narrow(F.silu(block.wide(normed(x, block.norm_ff, dtype, delta=delta)), inplace=True))
        assert delta is not None, "a stack has one block at least"
        return delta

    def _attended(self, block: BlockWeights, x: Tensor, angles: Tensor, remembered: Remembered, rows: Rows) -> Tensor:
        channels = x.shape[-1]
        made = block.heads(x)  # (B, T, (3 + H) C)
        remember(made[..., channels : 3 * channels], remembered, rows, heads=self._heads)
        relative = RelativePositions(made[..., 3 * channels :], angles, self._positions.table)
        return block.out(attend(made[..., :channels], remembered, rows, heads=self._heads, relative=relative))


def _input_layer(layer: InputLayer, dtype: torch.dtype) -> tuple[Layer, Norm]:
    linear, norm = layer.out
    assert isinstance(linear, nn.Linear) and isinstance(norm, nn.LayerNorm), "an input layer is a projection and a norm"
    return Layer.of(linear, dtype), Norm.of(norm, factor=math.sqrt(linear.out_features))
