"""What every way of joining chunks does, and what it carries from one call to the next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Protocol, Self

import torch
from torch import Tensor

from sidecar.timebase import frames_to_samples
from sidecar.token2wav.overlap import OVERLAP_SAMPLES
from sidecar.token2wav.vocoder import Vocoder


@dataclass(frozen=True)
class VocoderState:
    """What the next call needs of the ones before, for B streams. A policy adds what it carries besides: tensors, too.

    The sound of the newest 8 frames is withheld; while a stream has had fewer, it has given out nothing.
    """

    mel: Tensor  # (B, M, c), the newest frames
    speech: Tensor  # (B, 480 min(8, frames so far)), samples not given out yet
    frames_done: tuple[int, ...]  # mel frames taken so far, for each stream

    @property
    def held_frames(self) -> int:
        """c: how many frames the next call vocodes again, in front of its own; the same for all streams of a batch."""
        return self.mel.shape[-1]

    @classmethod
    def stack(cls, states: Sequence[Self]) -> Self:
        """Streams side by side; all must hold the same number of frames, and be of one policy."""
        kind = type(states[0])
        tensors = {name: torch.cat([getattr(state, name) for state in states]) for name in kind._tensors()}
        return kind(**tensors, frames_done=tuple(frames for state in states for frames in state.frames_done))

    def split(self) -> list[Self]:
        """One state for each stream, with memory of its own."""
        rows = range(len(self.frames_done))
        return [
            type(self)(
                **{name: getattr(self, name)[row : row + 1].clone() for name in self._tensors()},
                frames_done=self.frames_done[row : row + 1],
            )
            for row in rows
        ]

    @classmethod
    def _tensors(cls) -> list[str]:
        return [field.name for field in fields(cls) if field.name != "frames_done"]


class SeamPolicy(Protocol):
    """Over a stream a policy gives exactly 480 samples a frame, 3840 (160 ms) behind until the last chunk gives all.

    Chunks may have any length: while a stream has had fewer than 8 frames, it gives nothing and loses nothing.
    """

    def whole(self, vocoder: Vocoder, mel: Tensor, noise: Tensor, /) -> Tensor:
        """A whole utterance in one call: mel (B, M, T), noise (B, 480 T, 9) standard normal -> samples (B, 480 T)."""

    def initial_state(self, vocoder: Vocoder, batch: int, /) -> VocoderState:
        """Before the first frame of `batch` streams."""

    def step(
        self, vocoder: Vocoder, mel: Tensor, state: VocoderState, noise: Tensor, /, *, last: bool
    ) -> tuple[Tensor, VocoderState]:
        """The next chunk of B streams that hold equally many frames, c.

        Args:
            mel: (B, M, T), the new frames; none is allowed.
            noise: (B, 480 (c + T), 9), standard normal, for the held frames and the new ones.

        Returns:
            samples (B, S), and the state for the next chunk; it keeps no chunk in memory.
        """


def check_noise(noise: Tensor, frames: int) -> None:
    samples = frames_to_samples(frames)
    assert noise.shape[1] == samples, f"noise is for {noise.shape[1]} samples, the call makes {samples}"


def newest(x: Tensor, columns: int) -> Tensor:
    """The last columns of the last axis; a clone, since a view would keep the whole chunk alive with the stream."""
    return x[..., x.shape[-1] - columns :].clone()


def withhold(speech: Tensor, *, last: bool) -> tuple[Tensor, Tensor]:
    """All samples not given out before (B, S): what to give now, and what to withhold."""
    withheld = min(OVERLAP_SAMPLES, speech.shape[-1])
    return (speech if last else speech[:, : speech.shape[-1] - withheld]), newest(speech, withheld)
