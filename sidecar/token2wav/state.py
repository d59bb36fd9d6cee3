"""What a voice and a stream carry from one call to the next: values, never changed in place.

Stacked along B, rows that remember different lengths are filled up on the left; how many columns a row really has is
the length of its tuple of positions, and `present` makes the mask. Split again, each row is without the filling.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sidecar.timebase import FRAMES_PER_TOKEN
from sidecar.token2wav.seams import VocoderState

#: For each stream, the position (from the prompt's start) of each column its cache holds.
Positions = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class VoiceFeatures:
    """What one prompt recording gives."""

    prompt_tokens: Tensor  # (Np,) int64
    prompt_mel: Tensor  # (P, 80) float32, natural log, P = 2 Np
    speaker: Tensor  # (192,) float32


@dataclass(frozen=True)
class EncoderState:
    """Keys beside values; n tokens are cached, as 2n columns after the upsampling."""

    lookahead_past: Tensor  # (B, C, 2)
    upsample_past: Tensor  # (B, C, 4)
    token_keys_values: Tensor  # (blocks, B, H, n, 2D)
    frame_keys_values: Tensor  # (up blocks, B, H, 2n, 2D)
    tokens: Positions  # B tuples of at most n


@dataclass(frozen=True)
class EstimatorState:
    """Axis 2 is guidance: with the conditions, without."""

    conv_past: Tensor  # (K, blocks, 2, B, 2h, 2): inputs of the first convolution, then of the second
    keys_values: Tensor  # (K, blocks, 2, B, H, L, 2D)
    frames: Positions  # B tuples of at most L


@dataclass(frozen=True)
class FlowState:
    """B streams between two chunks."""

    speaker: Tensor  # (B, M), the speaker embedding as the estimator takes it
    encoder: EncoderState
    estimator: EstimatorState
    prompt_tokens: tuple[int, ...]
    tokens_done: tuple[int, ...]  # the prompt's included

    @property
    def prompt_frames(self) -> tuple[int, ...]:
        return tuple(tokens * FRAMES_PER_TOKEN for tokens in self.prompt_tokens)

    @property
    def frames_done(self) -> tuple[int, ...]:
        """Generated frames, the prompt's left out."""
        return tuple(
            (done - prompt) * FRAMES_PER_TOKEN
            for done, prompt in zip(self.tokens_done, self.prompt_tokens, strict=True)
        )


@dataclass(frozen=True)
class OpenedVoice:
    """A voice whose prompt has been fed; every stream of it starts from this one value."""

    flow: FlowState


@dataclass(frozen=True)
class StreamState:
    """One stream. `Token2Wav.step` hands back a new one and leaves the old as it was."""

    flow: FlowState
    vocoder: VocoderState
    seed: int

    @property
    def frames_done(self) -> int:
        """Mel frames made for this stream so far."""
        return self.flow.frames_done[0]

    @property
    def held_frames(self) -> int:
        """Frames that the next step vocodes again in front of its own; equal for all streams of one step."""
        return self.vocoder.held_frames


def stack(states: Sequence[FlowState]) -> FlowState:
    """Streams side by side along B, shorter caches filled up with zeros on the left."""
    if len(states) == 1:
        return states[0]
    encoders, estimators = [state.encoder for state in states], [state.estimator for state in states]
    return FlowState(
        speaker=torch.cat([state.speaker for state in states]),
        encoder=EncoderState(
            lookahead_past=torch.cat([encoder.lookahead_past for encoder in encoders]),
            upsample_past=torch.cat([encoder.upsample_past for encoder in encoders]),
            token_keys_values=_fill_and_join([encoder.token_keys_values for encoder in encoders], dim=1),
            frame_keys_values=_fill_and_join([encoder.frame_keys_values for encoder in encoders], dim=1),
            tokens=tuple(row for encoder in encoders for row in encoder.tokens),
        ),
        estimator=EstimatorState(
            conv_past=torch.cat([estimator.conv_past for estimator in estimators], dim=3),
            keys_values=_fill_and_join([estimator.keys_values for estimator in estimators], dim=3),
            frames=tuple(row for estimator in estimators for row in estimator.frames),
        ),
        prompt_tokens=tuple(row for state in states for row in state.prompt_tokens),
        tokens_done=tuple(row for state in states for row in state.tokens_done),
    )


def split(state: FlowState) -> list[FlowState]:
    """One state for each stream, without filling and with memory of its own."""
    return [_row(state, row) for row in range(len(state.tokens_done))]


def present(positions: Positions, width: int, new: int, device: torch.device) -> Tensor | None:
    """(B, width + new), true where a key stands: a row's cached ones end at `width`, then all new ones. None if all."""
    if all(len(row) == width for row in positions):
        return None
    column = torch.arange(width + new, device=device)
    filling = torch.tensor([width - len(row) for row in positions], device=device)
    return column >= filling[:, None]


def positions_tensor(positions: Positions, width: int, device: torch.device) -> Tensor:
    """(B, width) int64, each row at the right and zeros where it is filled up."""
    return torch.tensor(
        [[0] * (width - len(row)) + list(row) for row in positions], dtype=torch.long, device=device
    ).view(len(positions), width)


def _row(state: FlowState, row: int) -> FlowState:
    encoder, estimator = state.encoder, state.estimator
    tokens, frames = encoder.tokens[row], estimator.frames[row]
    mine = slice(row, row + 1)
    return FlowState(
        speaker=state.speaker[mine].clone(),
        encoder=EncoderState(
            lookahead_past=encoder.lookahead_past[mine].clone(),
            upsample_past=encoder.upsample_past[mine].clone(),
            token_keys_values=_newest(encoder.token_keys_values[:, mine], len(tokens)),
            frame_keys_values=_newest(encoder.frame_keys_values[:, mine], len(tokens) * FRAMES_PER_TOKEN),
            tokens=(tokens,),
        ),
        estimator=EstimatorState(
            conv_past=estimator.conv_past[:, :, :, mine].clone(),
            keys_values=_newest(estimator.keys_values[:, :, :, mine], len(frames)),
            frames=(frames,),
        ),
        prompt_tokens=(state.prompt_tokens[row],),
        tokens_done=(state.tokens_done[row],),
    )


def _newest(keys_values: Tensor, columns: int) -> Tensor:
    return keys_values[..., keys_values.shape[-2] - columns :, :].clone()


def _fill_and_join(rows: Sequence[Tensor], *, dim: int) -> Tensor:
    width = max(row.shape[-2] for row in rows)
    return torch.cat([torch.nn.functional.pad(row, (0, 0, width - row.shape[-2], 0)) for row in rows], dim=dim)
