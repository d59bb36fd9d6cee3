"""A picture of one border: the waveform and its level, chunks joined our way and the authors', over whole vocoding."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib as mpl
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from seam_measures import chunk_frames, held_vowel, noise_of, seam_parts, stream
from torch import Tensor
from torch.nn import functional as F

from sidecar.timebase import SAMPLE_RATE_HZ
from sidecar.token2wav.seams import SeamPolicy
from sidecar.token2wav.vocoder import Vocoder

F0_HZ = 153.0  # no whole number of turns between two borders
LEVEL_PERIODS = 3
FRAMES = 150
CHUNK_TOKENS = 25


def draw(vocoder: Vocoder, policies: Mapping[str, SeamPolicy], path: Path) -> None:
    """A held vowel around its first border, one column for each policy; written as the file's suffix says."""
    mel = held_vowel(FRAMES, f0_hz=F0_HZ)
    noise, chunks = noise_of(mel), chunk_frames(FRAMES, CHUNK_TOKENS)
    seam = seam_parts(chunks)[0]
    mpl.rcParams["svg.hashsalt"] = "seams"
    figure = Figure(figsize=(11, 6.5), layout="constrained")
    axes = figure.subplots(3, len(policies), sharey="row", squeeze=False)
    for column, (name, policy) in zip(axes.T, policies.items(), strict=True):
        with torch.inference_mode():
            whole = policy.whole(vocoder, mel, noise)[0]
        streamed = torch.cat(stream(policy, vocoder, mel, noise, chunks), dim=-1)[0]
        column[0].set_title(f"{name}: a held vowel, {F0_HZ:g} Hz, chunks of 1 s")
        _waveforms(column[0], streamed, whole, seam.start, "the border")
        _waveforms(column[1], streamed, whole, seam.stop, "the end of what is vocoded twice")
        _level(column[2], streamed, whole, seam)
    for row in (0, 2):
        axes[row, 0].legend(loc="lower left", fontsize="small")
    axes[0, 0].set_ylabel("samples")
    axes[1, 0].set_ylabel("samples")
    axes[2, 0].set_ylabel("level against whole, dB")
    figure.savefig(path, dpi=110)


def _waveforms(axes: Axes, streamed: Tensor, whole: Tensor, at: int, what: str) -> None:
    part = slice(at - 480, at + 480)
    milliseconds = 1000 * (torch.arange(part.start, part.stop) - at) / SAMPLE_RATE_HZ
    axes.plot(milliseconds, whole[part], color="0.7", linewidth=3, label="vocoded whole")
    axes.plot(milliseconds, streamed[part], color="C0", linewidth=0.8, label="streamed")
    axes.axvline(0, color="C3", linewidth=0.8)
    axes.set_xlabel(f"ms from {what}")


def _level(axes: Axes, streamed: Tensor, whole: Tensor, seam: slice) -> None:
    """In windows of whole periods, so that a steady sound is a straight line."""
    window = round(LEVEL_PERIODS * SAMPLE_RATE_HZ / F0_HZ)
    ratio = _power(streamed, window) / _power(whole, window)
    part = slice(seam.start - 4800, seam.stop + 4800)
    milliseconds = 1000 * (torch.arange(part.start, part.stop) - seam.start) / SAMPLE_RATE_HZ
    middle = slice(part.start - window // 2, part.stop - window // 2)
    axes.plot(milliseconds, 10 * ratio[middle].log10(), color="C0")
    axes.axvspan(0, 1000 * (seam.stop - seam.start) / SAMPLE_RATE_HZ, color="C3", alpha=0.12, label="vocoded twice")
    axes.set_xlabel("ms from the border")


def _power(sound: Tensor, window: int) -> Tensor:
    return F.avg_pool1d(sound.double().square()[None], window, stride=1)[0]
