"""The random numbers that mel and sound start from, counted by mel frame.

Frame i of a stream has its own numbers, found from the stream's seed by a counter (Philox4x32-10, "Parallel random
numbers: as easy as 1, 2, 3", SC11): they never run out or repeat, and don't depend on how the frames were cut into
chunks. `gpu/noise.py` draws the same numbers on a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sidecar.timebase import SAMPLES_PER_FRAME
from sidecar.token2wav.history import PAST_FRAMES
from sidecar.token2wav.phase import HARMONICS

#: The prompt's noise is the same in every process, so that an opened voice serves every stream.
PROMPT_SEED = 20_241_213

#: What a seed's numbers are for; part of the counter, so that no two uses draw the same.
PROMPT_MEL, SPEECH_MEL, SOURCE = range(3)

#: The numbers that one counter gives.
GROUP = 4

_LOW = np.uint64(0xFFFFFFFF)
_WORD_BITS = np.uint64(32)
_MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_KEY_STEPS = 0x9E3779B9, 0xBB67AE85
_ROUNDS = 10
#: Their intermediate numbers stay in the processor's cache.
_FRAMES_AT_ONCE = 16

#: An integer of 32 bits, in 64, so that a product of two keeps all of its bits.
_Words = NDArray[np.uint64]


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
        return _normals(PROMPT_SEED, PROMPT_MEL, 0, frames, mel_bins).T

    def speech_mel(self, seed: int, _prompt_frames: int, first_frame: int, frames: int, mel_bins: int, /) -> Tensor:
        return _normals(seed, SPEECH_MEL, first_frame, frames, mel_bins).T

    def source(self, seed: int, first_frame: int, frames: int) -> Tensor:
        drawn = _normals(seed, SOURCE, first_frame, frames, HARMONICS * SAMPLES_PER_FRAME)
        # a group is four samples of one harmonic: that is how a GPU's threads want to share the work
        return drawn.view(frames, HARMONICS, SAMPLES_PER_FRAME).transpose(1, 2).reshape(-1, HARMONICS)


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


def signed_seed(seed: int) -> int:
    """The seed's lower 64 bits, all that is used of it, as the signed integer that a tensor can hold."""
    return (seed + 2**63) % 2**64 - 2**63


def _normals(seed: int, use: int, first_frame: int, frames: int, numbers: int) -> Tensor:
    """(frames, numbers) float32; in NumPy, which multiplies integers three times as fast as torch on a CPU."""
    drawn = np.empty((frames, -(-numbers // GROUP), GROUP), dtype=np.float32)
    for start in range(0, frames, _FRAMES_AT_ONCE):
        _draw(drawn[start : start + _FRAMES_AT_ONCE], seed, use, first_frame + start)
    return torch.from_numpy(drawn.reshape(frames, -1)[:, :numbers])


def _draw(drawn: NDArray[np.float32], seed: int, use: int, first_frame: int) -> None:
    """Fill (frames, groups, 4)."""
    frames, groups, _ = drawn.shape
    frame = np.arange(frames, dtype=np.uint64)[:, None] + np.uint64(first_frame % 2**64)
    counter = (
        np.arange(groups, dtype=np.uint64)[None],
        frame & _LOW,
        frame >> _WORD_BITS,
        np.full((1, 1), use, np.uint64),
    )
    words = philox(counter, (seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF))
    drawn[..., 0], drawn[..., 1] = _box_muller(words[0], words[1])
    drawn[..., 2], drawn[..., 3] = _box_muller(words[2], words[3])


def philox(counter: tuple[_Words, _Words, _Words, _Words], key: tuple[int, int]) -> tuple[_Words, ...]:
    """Four random words of 32 bits for each counter of four; they broadcast."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        first, second = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1 = second >> _WORD_BITS ^ c1 ^ np.uint64(k0), second & _LOW
        c2, c3 = first >> _WORD_BITS ^ c3 ^ np.uint64(k1), first & _LOW
        k0, k1 = (k0 + _KEY_STEPS[0]) & 0xFFFFFFFF, (k1 + _KEY_STEPS[1]) & 0xFFFFFFFF
    return c0, c1, c2, c3


def _box_muller(radius: _Words, angle: _Words) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Two independent standard normal numbers from two words, of which 24 bits each are used.

    So many a float32 holds exactly, so that every machine starts from the same; a number is then at most 5.8.
    """
    above_zero = ((radius >> np.uint64(8)) + np.uint64(1)).astype(np.float32) * np.float32(2**-24)  # to 1
    turned = (angle >> np.uint64(8)).astype(np.float32) * np.float32(2**-24 * 2 * np.pi)
    length = np.sqrt(np.log(above_zero) * np.float32(-2))
    return length * np.cos(turned), length * np.sin(turned)
