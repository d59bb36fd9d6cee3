"""The random numbers that mel and sound start from, counted by mel frame.

Frame i of a stream has its own numbers, found from the stream's seed by a counter (Philox, "Parallel random numbers: as
easy as 1, 2, 3", SC11): they never run out or repeat, and don't depend on how the frames were cut into chunks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from sidecar.timebase import SAMPLES_PER_FRAME
from sidecar.token2wav.history import PAST_FRAMES
from sidecar.token2wav.phase import HARMONICS

#: The prompt's noise is the same in every process, so that an opened voice serves every stream.
PROMPT_SEED = 20_241_213

#: One key for each use of a seed, so that no two draw the same numbers.
_PROMPT_MEL, _SPEECH_MEL, _SOURCE = range(3)


class Noise(Protocol):
    """Standard normal numbers for every place that needs them; float32 on the CPU."""

    def prompt_mel(self, frames: int, mel_bins: int, /) -> Tensor:
        """(M, frames) for the flow while a voice is opened."""

    def speech_mel(self, seed: int, prompt_frames: int, first_frame: int, frames: int, mel_bins: int, /) -> Tensor:
        """(M, frames) for the flow, from frame `first_frame` of what the stream generates."""

    def source(self, seed: int, first_frame: int, frames: int, /) -> Tensor:
        """(480 frames, 9) for the vocoder's harmonics, from frame `first_frame` of what the stream generates."""


@dataclass(frozen=True)
class SeededNoise:
    """What the product uses."""

    def prompt_mel(self, frames: int, mel_bins: int) -> Tensor:
        return _frames(PROMPT_SEED, _PROMPT_MEL, 0, frames, mel_bins).T

    def speech_mel(self, seed: int, _prompt_frames: int, first_frame: int, frames: int, mel_bins: int, /) -> Tensor:
        return _frames(seed, _SPEECH_MEL, first_frame, frames, mel_bins).T

    def source(self, seed: int, first_frame: int, frames: int) -> Tensor:
        return _frames(seed, _SOURCE, first_frame, frames, SAMPLES_PER_FRAME * HARMONICS).view(-1, HARMONICS)


@dataclass(frozen=True)
class RecordedNoise:
    """One recorded tensor, read by the authors' rule, and a vocoder without noise; recordings of their code need it.

    The column a chunk starts from is the length of their attention cache: after 2 s always the same.
    """

    mel: Tensor  # (M, columns)

    def prompt_mel(self, frames: int, _mel_bins: int, /) -> Tensor:
        return self._columns(0, frames)

    def speech_mel(self, _seed: int, prompt_frames: int, first_frame: int, frames: int, _mel_bins: int, /) -> Tensor:
        return self._columns(prompt_frames + min(first_frame, PAST_FRAMES), frames)

    def source(self, _seed: int, _first_frame: int, frames: int, /) -> Tensor:
        return torch.zeros(frames * SAMPLES_PER_FRAME, HARMONICS)

    def _columns(self, first: int, columns: int) -> Tensor:
        if first + columns > self.mel.shape[1]:
            raise ValueError(
                f"the recorded noise has {self.mel.shape[1]} frames; {first} to {first + columns} are wanted"
            )
        return self.mel[:, first : first + columns]


def _frames(seed: int, use: int, first_frame: int, frames: int, numbers: int) -> Tensor:
    """(frames, numbers). Moving one generator to each frame's counter costs 1 us, a new generator 30."""
    philox = np.random.Philox(key=np.array([seed % 2**64, use], dtype=np.uint64))
    generator = np.random.Generator(philox)
    state = philox.state
    drawn = np.empty((frames, numbers), dtype=np.float32)
    for row in range(frames):
        # the two lower words count within a frame
        state["state"]["counter"][2] = first_frame + row
        philox.state = state
        generator.standard_normal(out=drawn[row], dtype=np.float32)
    return torch.from_numpy(drawn)
