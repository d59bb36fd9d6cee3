"""The cross-fades that join two chunks of sound."""

from __future__ import annotations

import torch
from torch import Tensor

from sidecar.timebase import frames_to_samples

#: Frames at the end of every chunk that are vocoded a second time, with the chunk after them in view.
OVERLAP_FRAMES = 8
OVERLAP_SAMPLES = frames_to_samples(OVERLAP_FRAMES)

#: How loud the new sound is, from the first sample of the overlap on, and how loud the old.
Fade = tuple[Tensor, Tensor]


def complementary_fade(samples: int, device: torch.device | str = "cpu") -> Fade:
    """Fade-in and fade-out, (samples,) each: raised cosines that add up to 1, so what both sounds share stays as is."""
    fade_in = torch.sin((torch.arange(samples, device=device) + 0.5) * (torch.pi / 2 / max(samples, 1))).square()
    return fade_in, 1 - fade_in


def reference_fade(device: torch.device | str = "cpu") -> Fade:
    """Fade-in and fade-out, (3840,) each, as the model's authors join chunks: the halves of a symmetric Hamming window.

    They add up to 1.08, not 1: the 160 ms of every seam are 0.67 dB louder than the rest.
    """
    window = torch.hamming_window(2 * OVERLAP_SAMPLES, periodic=False, device=device)
    return window[:OVERLAP_SAMPLES], window[OVERLAP_SAMPLES:]


def cross_fade(new: Tensor, held: Tensor, fade: Fade) -> Tensor:
    """`new` (B, S) with its beginning faded in over that of `held` (B, at least the fade's length); (B, S)."""
    fade_in, fade_out = fade
    samples = len(fade_in)
    joined = new[:, :samples] * fade_in + held[:, :samples] * fade_out
    return torch.cat([joined, new[:, samples:]], dim=-1)
