"""The velocity network in few kernels: eleven a block, and nothing copied together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sidecar.timebase import FRAMES_PER_TOKEN
from sidecar.token2wav.estimator import Estimator, EstimatorBlock, Modulation
from sidecar.token2wav.gpu.ahead import Ahead
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
    def of(weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> _Layer:
        assert bias is not None, "a layer with a bias"
        return _Layer(weight.to(dtype).contiguous(), bias.to(dtype).contiguous())

    def __call__(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class _Matrices(NamedTuple):
    """A block's, in the order of their use."""

    heads: Tensor  # (3 H D, h)
    attended: Tensor  # (h, H D)
    first: Tensor  # (h, 3h)
    second: Tensor  # (h, 3h)
    wide: Tensor  # (4h, h)
    narrow: Tensor  # (h, 4h)

    @staticmethod
    def of(block: EstimatorBlock) -> _Matrices:
        attention, convolutions = block.attn, block.conv.block
        return _Matrices(
            torch.cat([layer.weight for layer in (attention.to_q, attention.to_k, attention.to_v)]),
            attention.proj.weight,
            _over_windows(convolutions["1"]),
            _over_windows(convolutions["6"]),
            block.mlp.fc1.weight,
            block.mlp.fc2.weight,
        )

    @staticmethod
    def together(blocks: Sequence[EstimatorBlock], dtype: torch.dtype) -> list[_Matrices]:
        """All blocks' in one memory, one behind the other, so that any stretch of it can be asked for."""
        apart = [_Matrices.of(block) for block in blocks]
        flat = torch.cat([matrix.to(dtype).flatten() for matrices in apart for matrix in matrices])
        views = iter(torch.split(flat, [matrix.numel() for matrices in apart for matrix in matrices]))
        return [_Matrices(*(next(views).view_as(matrix) for matrix in matrices)) for matrices in apart]


def _stretch(first: Tensor, last: Tensor) -> Ahead:
    """From one matrix to another of the same memory, both included."""
    begin, end = first.storage_offset(), last.storage_offset() + last.numel()
    return Ahead.of(first.as_strided((end - begin,), (1,), begin))


class _Block:
    """One block's weights as the kernels take them."""

    def __init__(self, block: EstimatorBlock, matrices: _Matrices, following: Tensor) -> None:
        attention, convolutions = block.attn, block.conv.block
        dtype = matrices.heads.dtype
        norms = (attention.q_norm, attention.k_norm)
        self.heads = HeadWeights(
            matrices.heads,
            torch.cat([layer.bias for layer in (attention.to_q, attention.to_k, attention.to_v)]).to(dtype),
            torch.stack([norm.weight for norm in norms]).float(),
            torch.stack([norm.bias for norm in norms]).float(),
            attention.heads,
        )
        self.attended = _Layer.of(matrices.attended, attention.proj.bias, dtype)
        self.first = _Layer.of(matrices.first, cast("nn.Conv1d", convolutions["1"]).bias, dtype)
        between = cast("nn.LayerNorm", convolutions["3"])
        self.between = torch.stack([between.bias, between.weight]).float()  # (2, h), shift and scale
        self.second = _Layer.of(matrices.second, cast("nn.Conv1d", convolutions["6"]).bias, dtype)
        self.wide = _Layer.of(matrices.wide, block.mlp.fc1.bias, dtype)
        self.narrow = _Layer.of(matrices.narrow, block.mlp.fc2.bias, dtype)
        # what each of the four norms asks for: not what comes next, but after that
        self.ahead_of_heads = _stretch(matrices.attended, matrices.first)
        self.ahead_of_first = _stretch(matrices.second, matrices.second)
        self.ahead_of_second = _stretch(matrices.wide, matrices.wide)
        self.ahead_of_wide = _stretch(matrices.narrow, following)


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
        blocks = [cast("EstimatorBlock", block) for block in estimator.blocks]
        matrices = _Matrices.together(blocks, dtype)
        following = [*(of_block.heads for of_block in matrices[1:]), matrices[-1].narrow]  # after the last, nothing
        self.blocks = [_Block(*parts) for parts in zip(blocks, matrices, following, strict=True)]
        self.out = _Layer.of(estimator.final_layer.linear.weight, estimator.final_layer.linear.bias, dtype)

    def workspace(self, rows: Rows, slots: Slots) -> Workspace:
        return Workspace.of(rows, slots, self.hidden, self.dtype)

    def condition(self, mu: Tensor, speaker: Tensor) -> Tensor:
        """mu (B, T, M) and speaker (B, M) -> (B T, h), their part of the first layer; the same at all flow steps."""
        together = torch.cat([mu, speaker[:, None].expand_as(mu)], dim=-1)  # (B, T, 2M)
        return self.given(together.flatten(0, 1))

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
            x=work.x, out=work.normed, ahead=self.blocks[0].ahead_of_heads,
        )  # fmt: skip
        for place, (block, norm) in enumerate(zip(self.blocks, norms, strict=True)):
            fed = self._block(block, modulation[place], (step, place), work)
            following = self.blocks[(place + 1) % len(self.blocks)]
            add_and_norm(
                work.x, fed, modulation[place, _FEED_FORWARD_GATE], norm,
                out=work.normed, ahead=following.ahead_of_heads,
            )  # fmt: skip
        return self.out(work.normed)

    def _block(self, block: _Block, modulation: Tensor, at: tuple[int, int], work: Workspace) -> Tensor:
        """From `normed` to the feed-forward's output (2 B T, h), which is still to be added to x."""
        past = ConvPast(work.slots.conv_past[:, *at], work.rows)
        attended = block.attended(self._attend(block.heads, at, work))
        norm_to_windows(
            work.x, attended, modulation[_ATTENTION_GATE], modulation[_CONVOLUTION],
            windows=work.first_windows, past=past, ahead=block.ahead_of_first,
        )  # fmt: skip
        mish_to_windows(
            block.first(work.first_windows), block.between,
            first_windows=work.first_windows, windows=work.second_windows, past=past, ahead=block.ahead_of_second,
        )  # fmt: skip
        norm_and_keep(
            work.x, block.second(work.second_windows), modulation[_CONVOLUTION_GATE], modulation[_FEED_FORWARD],
            out=work.normed, windows=work.second_windows, past=past, ahead=block.ahead_of_wide,
            **self._voice_of_next(at, work.slots),
        )  # fmt: skip
        return block.narrow(linear(work.normed, block.wide.weight, block.wide.bias, gelu=True))

    def _voice_of_next(self, at: tuple[int, int], slots: Slots) -> dict[str, int]:
        """Where the block after this one, or again the step's last, has its keys and values in each voice."""
        steps, depth, _, heads, _, width = slots.frames.shape[1:]
        place = min(at[0] * depth + at[1] + 1, steps * depth - 1)
        return {"voice_index": 2 * place, "voice_bytes": heads * width * slots.frames.element_size()}

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


def _over_windows(convolution: nn.Module) -> Tensor:
    """A convolution (h, h, 3) as a matrix (h, 3h) over windows."""
    assert isinstance(convolution, nn.Conv1d), "a convolution over frames"
    return convolution.weight.permute(0, 2, 1).flatten(1)
