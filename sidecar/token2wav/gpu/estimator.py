"""The velocity network in few kernels: eleven a block, and nothing copied together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sidecar.timebase import FRAMES_PER_TOKEN
from sidecar.token2wav.estimator import Estimator, EstimatorBlock, Modulation
from sidecar.token2wav.gpu.attention import Remembered, attend
from sidecar.token2wav.gpu.norms import add_and_norm, begin
from sidecar.token2wav.gpu.products import HeadWeights, heads_product, linear
from sidecar.token2wav.gpu.rows import Field, Rows
from sidecar.token2wav.gpu.slots import Slots
from sidecar.token2wav.gpu.windows import TAPS, ConvPast, mish_to_windows, norm_and_keep, norm_to_windows

# A block's modulation has nine parts: shift, scale and gate of attention, then of feed-forward, then of convolution.
_PARTS = 9
_SCALES = slice(1, None, 3)
_ATTENTION, _FEED_FORWARD, _CONVOLUTION = slice(0, 2), slice(3, 5), slice(6, 8)  # shift and scale
_ATTENTION_GATE, _FEED_FORWARD_GATE, _CONVOLUTION_GATE = 2, 5, 8


@dataclass(frozen=True)
class Constants:
    """What the K flow times do to every block. The 1 is in the scales already, and all is float32."""

    blocks: Tensor  # (K, blocks, 9, h)
    final: Tensor  # (K, 2, h)

    @staticmethod
    def of(modulation: Modulation) -> Constants:
        depth, steps = modulation.blocks.shape[:2]
        parts = modulation.blocks.float().view(depth, steps, _PARTS, -1).transpose(0, 1)
        blocks = parts.clone(memory_format=torch.contiguous_format)
        final = modulation.final.float().view(steps, 2, -1).clone()
        blocks[:, :, _SCALES] += 1
        final[:, 1] += 1
        return Constants(blocks, final)


@dataclass(frozen=True)
class _Layer:
    """A matrix (N, K) and its bias (N,)."""

    weight: Tensor
    bias: Tensor

    @staticmethod
    def of(weight: Tensor, bias: Tensor, dtype: torch.dtype) -> _Layer:
        return _Layer(weight.to(dtype).contiguous(), bias.to(dtype).contiguous())

    def __call__(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class _Block:
    """One block's weights as the kernels take them."""

    def __init__(self, block: EstimatorBlock, dtype: torch.dtype) -> None:
        attention, convolutions = block.attn, block.conv.block
        given = (attention.to_q, attention.to_k, attention.to_v)
        norms = (attention.q_norm, attention.k_norm)
        self.heads = HeadWeights(
            torch.cat([layer.weight for layer in given]).to(dtype),
            torch.cat([layer.bias for layer in given]).to(dtype),
            torch.stack([norm.weight for norm in norms]).float(),
            torch.stack([norm.bias for norm in norms]).float(),
            attention.heads,
        )
        self.attended = _Layer.of(attention.proj.weight, attention.proj.bias, dtype)
        self.first = _over_windows(convolutions["1"], dtype)
        between = cast("nn.LayerNorm", convolutions["3"])
        self.between = torch.stack([between.bias, between.weight]).float()  # (2, h), shift and scale
        self.second = _over_windows(convolutions["6"], dtype)
        self.wide = _Layer.of(block.mlp.fc1.weight, block.mlp.fc1.bias, dtype)
        self.narrow = _Layer.of(block.mlp.fc2.weight, block.mlp.fc2.bias, dtype)


@dataclass(frozen=True)
class Workspace:
    """What one step reads and writes, the same for all blocks and flow steps; R = 2B."""

    rows: Rows
    slots: Slots
    x: Tensor  # (R T, h) float32, what the blocks add up
    normed: Tensor  # (R T, h)
    first_windows: Tensor  # (R T, 3h)
    second_windows: Tensor  # (R T, 3h)

    @staticmethod
    def of(rows: Rows, slots: Slots, hidden: int, dtype: torch.dtype) -> Workspace:
        def buffer(width: int, kind: torch.dtype) -> Tensor:
            return torch.empty(2 * rows.batch * rows.frames, width, dtype=kind, device=rows.control.device)

        return Workspace(
            rows, slots, buffer(hidden, torch.float32), buffer(hidden, dtype),
            buffer(TAPS * hidden, dtype), buffer(TAPS * hidden, dtype),
        )  # fmt: skip


class FusedEstimator:
    """`Estimator` with its weights laid out anew; what a flow time does to a block is a constant here."""

    def __init__(self, estimator: Estimator, modulation: Modulation, dtype: torch.dtype, *, past_frames: int) -> None:
        mel_bins = estimator.config.out_channels
        weight = estimator.in_proj.weight
        self.dtype = dtype
        self.past_frames = past_frames
        self.hidden = estimator.config.hidden_size
        self.constants = Constants.of(modulation)
        self.noisy_weight = weight[:, :mel_bins].to(dtype).contiguous()  # (h, M)
        # frames that are being made have no recorded mel, the last of the four parts
        self.given = _Layer.of(weight[:, mel_bins : 3 * mel_bins], estimator.in_proj.bias, dtype)  # (h, 2M)
        self.blocks = [_Block(cast("EstimatorBlock", block), dtype) for block in estimator.blocks]
        self.out = _Layer.of(estimator.final_layer.linear.weight, estimator.final_layer.linear.bias, dtype)

    def workspace(self, rows: Rows, slots: Slots) -> Workspace:
        return Workspace.of(rows, slots, self.hidden, self.dtype)

    def condition(self, mu: Tensor, speaker: Tensor) -> Tensor:
        """mu (B, T, M) and speaker (B, M) -> (B T, h), their part of the first layer; the same at all flow steps."""
        together = torch.cat([mu, speaker[:, None].expand_as(mu)], dim=-1)  # (B, T, 2M)
        return F.linear(together.flatten(0, 1), self.given.weight, self.given.bias)  # once a step

    def __call__(self, noisy: Tensor, given: Tensor, step: int, work: Workspace) -> Tensor:
        """The velocity at flow step `step`; its new keys, values and last frames are put into the slots.

        Args:
            noisy: (B T, M), in `dtype`.
            given: of `condition`.

        Returns:
            (2 B T, M) in `dtype`, with the conditions, then without.
        """
        modulation = self.constants.blocks[step]  # (blocks, 9, h)
        # the norm after a block's sum is the next block's, or the last layer's
        norms = [*modulation[1:, _ATTENTION], self.constants.final[step]]
        begin(
            F.linear(noisy, self.noisy_weight), given, self.given.bias, modulation[0, _ATTENTION],
            x=work.x, out=work.normed,
        )  # fmt: skip
        for place, (block, norm) in enumerate(zip(self.blocks, norms, strict=True)):
            fed = self._block(block, modulation[place], (step, place), work)
            add_and_norm(work.x, fed, modulation[place, _FEED_FORWARD_GATE], norm, out=work.normed)
        return self.out(work.normed)

    def _block(self, block: _Block, modulation: Tensor, at: tuple[int, int], work: Workspace) -> Tensor:
        """From `normed` to the feed-forward's output (2 B T, h), which is still to be added to x."""
        past = ConvPast(work.slots.conv_past[:, *at], work.rows)
        attended = block.attended(self._attend(block.heads, at, work))
        norm_to_windows(
            work.x, attended, modulation[_ATTENTION_GATE], modulation[_CONVOLUTION],
            windows=work.first_windows, past=past,
        )  # fmt: skip
        mish_to_windows(
            block.first(work.first_windows), block.between,
            first_windows=work.first_windows, windows=work.second_windows, past=past,
        )  # fmt: skip
        norm_and_keep(
            work.x, block.second(work.second_windows), modulation[_CONVOLUTION_GATE], modulation[_FEED_FORWARD],
            out=work.normed, windows=work.second_windows, past=past,
        )  # fmt: skip
        return block.narrow(linear(work.normed, block.wide.weight, block.wide.bias, gelu=True))

    def _attend(self, heads: HeadWeights, at: tuple[int, int], work: Workspace) -> Tensor:
        """(2 B T, H D), the new keys and values in the ring before any query looks at them."""
        ring = work.slots.frames[:, *at]  # (S, 2, H, ring, 2D)
        remembered = Remembered(
            ring,
            Field.VOICE_FRAMES,
            voice_index=2 * (at[0] * len(self.blocks) + at[1]),
            columns_per_token=FRAMES_PER_TOKEN,
            window=self.past_frames,
        )
        query = heads_product(work.normed, heads, ring, work.rows)
        return attend(query, remembered, work.rows, heads=heads.heads).flatten(0, 1)


def _over_windows(convolution: nn.Module, dtype: torch.dtype) -> _Layer:
    """A convolution (h, h, 3) as a matrix (h, 3h) over windows."""
    assert isinstance(convolution, nn.Conv1d) and convolution.bias is not None, "a convolution with a bias"
    return _Layer.of(convolution.weight.permute(0, 2, 1).flatten(1), convolution.bias, dtype)
