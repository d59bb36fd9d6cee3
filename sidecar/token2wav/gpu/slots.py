"""The memory of all streams that can run at once: allocated at the start, written in place, the same for ever.

A slot holds what is a stream's own. Its voice's keys and values lie with the voice, once for all streams that speak
with it. Keys and values lie in rings: position p of the stream (the prompt not counted) in column p mod ring, and a
ring has room for the window and the longest chunk, so that a step writes its own before it reads.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from sidecar.timebase import FRAMES_PER_TOKEN
from sidecar.token2wav.config import FlowConfig
from sidecar.token2wav.history import PAST_FRAMES, PAST_TOKENS
from sidecar.token2wav.overlap import OVERLAP_FRAMES, OVERLAP_SAMPLES
from sidecar.token2wav.pitch import REACH_FRAMES
from sidecar.token2wav.seams.continuous import CONTEXT_FRAMES

#: What the vocoder sees again in every later call, at most.
HELD_FRAMES = OVERLAP_FRAMES + CONTEXT_FRAMES
#: Of those, the frames whose pitch no later frame changes.
FINAL_FRAMES = HELD_FRAMES - REACH_FRAMES


@dataclass(frozen=True)
class Slots:
    """S slots. Frames stand before channels here, as the kernels read them."""

    frames: Tensor  # (S, K, blocks, 2, H, ring, 2D): the estimator's keys beside values; axis 3 is guidance
    conv_past: Tensor  # (S, K, blocks, 2, 2h, 2): inputs of the first convolution, then of the second
    tokens: Tensor  # (S, blocks, H, token ring, 2D): the encoder's, before the upsampling
    upsampled: Tensor  # (S, up blocks, H, 2 x token ring, 2D): and after it
    lookahead_past: Tensor  # (S, C, 2)
    upsample_past: Tensor  # (S, C, 4)
    speaker: Tensor  # (S, M)
    mel: Tensor  # (S, 16, M) float32: the held frames from the first column on
    f0: Tensor  # (S, 11) float32: the final pitches of the held frames
    turns: Tensor  # (S,) float64, of the fundamental at the middle of the frame before the held ones
    at_start: Tensor  # (S,) int64: 1 while the first frame held is the stream's first
    speech: Tensor  # (S, 3840) float32: the withheld samples

    @property
    def count(self) -> int:
        return self.speaker.shape[0]

    @property
    def bytes_per_slot(self) -> int:
        tensors = [getattr(self, field.name) for field in fields(self)]
        return sum(tensor[0].numel() * tensor.element_size() for tensor in tensors)


def allocate(
    config: FlowConfig,
    slots: int,
    *,
    most_tokens: int,
    dtype: torch.dtype,
    device: torch.device | str,
    past_frames: int = PAST_FRAMES,
    past_tokens: int = PAST_TOKENS,
) -> Slots:
    """Slots for chunks of at most `most_tokens` new tokens."""
    encoder, estimator = config.encoder, config.estimator
    channels, hidden = encoder.output_size, estimator.hidden_size
    width = channels // encoder.attention_heads
    frame_ring = past_frames + most_tokens * FRAMES_PER_TOKEN
    token_ring = past_tokens + most_tokens
    keys_values = (estimator.num_heads, frame_ring, 2 * estimator.head_dim)

    def own(*shape: int, kind: torch.dtype = dtype) -> Tensor:
        return torch.zeros(slots, *shape, dtype=kind, device=device)

    return Slots(
        frames=own(config.steps, estimator.depth, 2, *keys_values),
        conv_past=own(config.steps, estimator.depth, 2, 2 * hidden, 2),
        tokens=own(encoder.num_blocks, encoder.attention_heads, token_ring, 2 * width),
        upsampled=own(encoder.num_up_blocks, encoder.attention_heads, FRAMES_PER_TOKEN * token_ring, 2 * width),
        lookahead_past=own(channels, 2),
        upsample_past=own(channels, 2 * FRAMES_PER_TOKEN),
        speaker=own(config.output_size),
        mel=own(HELD_FRAMES, config.output_size, kind=torch.float32),
        f0=own(FINAL_FRAMES, kind=torch.float32),
        turns=own(kind=torch.float64),
        at_start=own(kind=torch.int64),
        speech=own(OVERLAP_SAMPLES, kind=torch.float32),
    )
