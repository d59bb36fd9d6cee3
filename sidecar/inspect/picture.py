"""Waveform, level and mel of a sound over one time axis, the seams between its chunks marked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from sidecar.inspect.borders import Border
from sidecar.timebase import FRAME_RATE_HZ, SAMPLE_RATE_HZ, samples_to_seconds
from sidecar.voices.mel import flow_mel

#: Of one number of the level: short against a seam, long against a period of the voice.
LEVEL_WINDOW_SAMPLES = SAMPLE_RATE_HZ // 50
LEVEL_STEP_SAMPLES = SAMPLE_RATE_HZ // 500
QUIETEST_DB = -80.0
#: Shown to either side of a seam that is looked at closely.
MARGIN_S = 0.1

INCHES_HIGH = 8.0
INCHES_WIDE = 14.0
DOTS_PER_INCH = 80


def draw(samples: NDArray[np.float32], borders: Sequence[Border], path: Path, *, zoom: int | None = None) -> None:
    """Write a picture of samples (S,) at 24 kHz, S above 720.

    Args:
        path: its suffix says the format.
        zoom: show the seam of the border with this number, from 1, alone.
    """
    figure = Figure(figsize=(INCHES_WIDE, INCHES_HIGH), layout="constrained")
    waveform, level, mel = figure.subplots(3, 1, sharex=True)
    _draw_waveform(waveform, samples)
    _draw_level(level, samples)
    _draw_mel(mel, samples)
    for number, border in enumerate(borders, start=1):
        _mark(waveform, number, border)
        for axes in (level, mel):
            _mark(axes, None, border)
    mel.set_xlabel("s; red: where the next chunk's sound begins, dotted: how far the chunk before had made it too")
    mel.set_xlim(0, samples_to_seconds(samples.size))
    if zoom is not None:
        start, end = _seconds(borders[zoom - 1])
        mel.set_xlim(start - MARGIN_S, end + MARGIN_S)
    figure.savefig(path, dpi=DOTS_PER_INCH)


def level_db(samples: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The middles of 20 ms windows in s, and in each the root mean square against full scale in dB."""
    squares = np.concatenate([[0.0], np.cumsum(samples.astype(np.float64) ** 2)])
    starts = np.arange(0, max(samples.size - LEVEL_WINDOW_SAMPLES, 0) + 1, LEVEL_STEP_SAMPLES)
    power = (squares[starts + LEVEL_WINDOW_SAMPLES] - squares[starts]) / LEVEL_WINDOW_SAMPLES
    decibels = 10 * np.log10(np.maximum(power, 10 ** (QUIETEST_DB / 10)))
    return (starts + LEVEL_WINDOW_SAMPLES / 2) / SAMPLE_RATE_HZ, decibels


def _draw_waveform(axes: Axes, samples: NDArray[np.float32]) -> None:
    axes.plot(np.arange(samples.size) / SAMPLE_RATE_HZ, samples, linewidth=0.5)
    axes.set_ylabel("samples")


def _draw_level(axes: Axes, samples: NDArray[np.float32]) -> None:
    axes.plot(*level_db(samples), linewidth=1)
    axes.set_ylabel("level, dB of full scale")
    axes.grid(alpha=0.3)


def _draw_mel(axes: Axes, samples: NDArray[np.float32]) -> None:
    mel = flow_mel(torch.from_numpy(samples)).T.numpy()  # (80, T)
    seconds = mel.shape[1] / FRAME_RATE_HZ
    axes.imshow(mel, origin="lower", aspect="auto", interpolation="nearest", extent=(0, seconds, 0, mel.shape[0]))
    axes.set_ylabel("mel bin (0 to 8 kHz)")


def _mark(axes: Axes, number: int | None, border: Border) -> None:
    start, end = _seconds(border)
    axes.axvline(start, color="C3", linewidth=1)
    axes.axvline(end, color="C3", linewidth=1, linestyle=":")
    if number is not None:
        label = axes.annotate(f" {number}", (start, 1), xycoords=("data", "axes fraction"), va="top", color="C3")
        label.set_clip_on(True)
        label.set_in_layout(False)  # or those out of a close look's view would be given room


def _seconds(border: Border) -> tuple[float, float]:
    return samples_to_seconds(border.sample), samples_to_seconds(border.seam_end)
