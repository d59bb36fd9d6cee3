"""The cross-fade that joins two chunks of sound."""

from __future__ import annotations

import torch
from torch import Tensor

from sidecar.timebase import frames_to_samples

#: Frames at the end of every chunk that are vocoded a second time, with the chunk after them in view.
OVERLAP_FRAMES = 8
OVERLAP_SAMPLES = frames_to_samples(OVERLAP_FRAMES)


def reference_fade(device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Fade-in and fade-out, (3840,) each, as the model's authors join chunks: the halves of a symmetric Hamming window.

    They add up to 1.08, not 1: the 160 ms of every seam are 0.67 dB louder than the rest.
    """
    window = torch.hamming_window(2 * OVERLAP_SAMPLES, periodic=False, device=device)
    return window[:OVERLAP_SAMPLES], window[OVERLAP_SAMPLES:]


def cross_fade(new: Tensor, held: Tensor, fade: tuple[Tensor, Tensor]) -> Tensor:
    """`new` (B, S) with its beginning faded in over `held` (B, 3840), the end of the sound before; (B, S)."""
    fade_in, fade_out = fade
    joined = new[:, : held.shape[-1]] * fade_in + held * fade_out
    return torch.cat([joined, new[:, held.shape[-1] :]], dim=-1)
