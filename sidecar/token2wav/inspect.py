"""Draws a streamed reply with its chunk borders marked, for people who debug seams.

python -m sidecar.token2wav.inspect FILE.wav
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import chain, repeat
from pathlib import Path
from typing import TYPE_CHECKING

import librosa
import numpy as np
import soundfile
from numpy.typing import NDArray

from sidecar.timebase import (
    SAMPLE_RATE_HZ,
    SAMPLES_PER_FRAME,
    SAMPLES_PER_TOKEN,
    samples_to_seconds,
    tokens_to_samples,
)
from sidecar.token2wav.overlap import OVERLAP_SAMPLES
from sidecar.token2wav.upsample_encoder import LOOKAHEAD_TOKENS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

logger = logging.getLogger(__name__)

#: The server's default: 10, 10, 15, 22, and from then on 25.
CHUNK_TOKENS = (10, 10, 15, 22, 25)
#: Of one number of the level: short against a seam, long against a period of the voice.
LEVEL_WINDOW_SAMPLES = SAMPLE_RATE_HZ // 50
LEVEL_STEP_SAMPLES = SAMPLE_RATE_HZ // 500
QUIETEST_DB = -80.0
MEL_BINS = 80
N_FFT = 1920
HIGHEST_HZ = 8000.0
#: Shown to either side of a seam that is looked at closely.
MARGIN_S = 0.1

_DESCRIPTION = """\
Draw waveform, level and mel of a reply that was streamed, with its chunk borders marked. Give it the file as the server
sent it, from its first sample on, as wav or flac: mp3, opus and aac may shift it by some milliseconds."""


class CannotDraw(Exception):
    """What was asked for makes no picture; says why."""


@dataclass(frozen=True)
class Border:
    """A place where one chunk's sound was joined to the next one's."""

    sample: int  # the first that came with the later chunk
    seam_end: int  # until here the earlier chunk had made sound too, which was withheld


def borders(samples: int, chunk_tokens: Sequence[int]) -> list[Border]:
    """Those of a whole reply of so many samples at 24 kHz, cut into chunks of these sizes, the last of which repeats.

    A chunk's newest sound is withheld and comes with the next chunk, so a border lies before the chunk's last token. A
    chunk that has nothing more to give than that makes no border.
    """
    tokens, done, found = -(-samples // SAMPLES_PER_TOKEN), 0, []
    for size in chain(chunk_tokens, repeat(chunk_tokens[-1])):
        if tokens - done < size + LOOKAHEAD_TOKENS:
            break  # the rest is the last chunk
        done += size
        end = tokens_to_samples(done)
        if end > OVERLAP_SAMPLES:
            found.append(Border(end - OVERLAP_SAMPLES, min(end, samples)))
    return found


def read_sound(path: Path) -> NDArray[np.float32]:
    """Samples (S,) at 24 kHz, the mean of all channels.

    Raises:
        CannotDraw: no sound that can be read, or none in it.
    """
    try:
        samples, rate_hz = soundfile.read(path, dtype="float32", always_2d=True)
    except soundfile.SoundFileError as error:
        raise CannotDraw(f"{path} cannot be read: {error}") from error
    mono: NDArray[np.float32] = librosa.resample(samples.mean(axis=1), orig_sr=rate_hz, target_sr=SAMPLE_RATE_HZ)
    if mono.size < LEVEL_WINDOW_SAMPLES:
        raise CannotDraw(f"{path} has {mono.size} samples at 24 kHz; a picture needs {LEVEL_WINDOW_SAMPLES}")
    return mono


def level_db(samples: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The middles of 20 ms windows in s, and in each the root mean square against full scale in dB."""
    squares = np.concatenate([[0.0], np.cumsum(samples.astype(np.float64) ** 2)])
    starts = np.arange(0, samples.size - LEVEL_WINDOW_SAMPLES + 1, LEVEL_STEP_SAMPLES)
    power = (squares[starts + LEVEL_WINDOW_SAMPLES] - squares[starts]) / LEVEL_WINDOW_SAMPLES
    decibels = 10 * np.log10(np.maximum(power, 10 ** (QUIETEST_DB / 10)))
    return (starts + LEVEL_WINDOW_SAMPLES / 2) / SAMPLE_RATE_HZ, decibels


def draw(samples: NDArray[np.float32], found: Sequence[Border], path: Path, *, zoom: int | None = None) -> None:
    """Write a picture of samples (S,) at 24 kHz.

    Args:
        path: its suffix says the format.
        zoom: show the seam of the border with this number, from 1, alone.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415  it need not be installed

    figure = Figure(figsize=(14, 8), layout="constrained")
    waveform, level, mel = figure.subplots(3, 1, sharex=True)
    waveform.plot(np.arange(samples.size) / SAMPLE_RATE_HZ, samples, linewidth=0.5)
    waveform.set_ylabel("samples")
    level.plot(*level_db(samples), linewidth=1)
    level.set_ylabel("level, dB of full scale")
    level.grid(alpha=0.3)
    _draw_mel(mel, samples)
    for number, border in enumerate(found, start=1):
        for axes in (waveform, level, mel):
            axes.axvline(samples_to_seconds(border.sample), color="C3", linewidth=1)
            axes.axvline(samples_to_seconds(border.seam_end), color="C3", linewidth=1, linestyle=":")
        _number(waveform, number, border)
    mel.set_xlabel("s; red: where the next chunk's sound begins, dotted: how far the chunk before had made it too")
    mel.set_xlim(0, samples_to_seconds(samples.size))
    if zoom is not None:
        seam = found[zoom - 1]
        mel.set_xlim(samples_to_seconds(seam.sample) - MARGIN_S, samples_to_seconds(seam.seam_end) + MARGIN_S)
    figure.savefig(path, dpi=80)


def _draw_mel(axes: Axes, samples: NDArray[np.float32]) -> None:
    power = librosa.feature.melspectrogram(
        y=samples, sr=SAMPLE_RATE_HZ, n_fft=N_FFT, hop_length=SAMPLES_PER_FRAME, n_mels=MEL_BINS, fmax=HIGHEST_HZ
    )  # (80, T)
    extent = (0, samples_to_seconds(samples.size), 0, MEL_BINS)
    decibels = librosa.power_to_db(power, ref=np.max)
    axes.imshow(decibels, origin="lower", aspect="auto", interpolation="nearest", extent=extent)
    axes.set_ylabel("mel bin (0 to 8 kHz)")


def _number(axes: Axes, number: int, border: Border) -> None:
    at = (samples_to_seconds(border.sample), 1)
    label = axes.annotate(f" {number}", at, xycoords=("data", "axes fraction"), va="top", color="C3")
    label.set_clip_on(True)
    label.set_in_layout(False)  # or those out of a close look's view would be given room


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    wanted = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if find_spec("matplotlib") is None:
        logger.error("drawing needs matplotlib: pip install 'step-audio-serve[plot]'")
        return 1
    try:
        samples = read_sound(wanted.file)
        found = borders(samples.size, wanted.chunk_tokens)
        if wanted.zoom is not None and not 1 <= wanted.zoom <= len(found):
            raise CannotDraw(f"--zoom {wanted.zoom}: this sound has {len(found)} borders, the first is 1")
        out = wanted.out or wanted.file.with_suffix(".png")
        draw(samples, found, out, zoom=wanted.zoom)
    except (CannotDraw, OSError) as error:
        logger.error("%s", error)
        return 1
    for number, border in enumerate(found, start=1):
        logger.info("border %d: sample %d, %.3f s", number, border.sample, samples_to_seconds(border.sample))
    logger.info("%s written", out)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m sidecar.token2wav.inspect", description=_DESCRIPTION)
    parser.add_argument("file", metavar="FILE.wav", type=Path, help="a reply's sound")
    parser.add_argument(
        "--chunk-tokens",
        metavar="N,N,...",
        type=_sizes,
        default=CHUNK_TOKENS,
        help="speech tokens in each chunk; the last number repeats (default: 8,12,18,25, the server's own default)",
    )
    parser.add_argument("--zoom", metavar="BORDER", type=int, help="show this border alone, the first is 1")
    parser.add_argument("--out", metavar="PNG", type=Path, help="the picture (default: FILE.png beside the sound)")
    return parser


def _sizes(word: str) -> tuple[int, ...]:
    sizes = tuple(int(size) for size in word.split(","))
    if min(sizes) < 1:
        raise argparse.ArgumentTypeError(f"a chunk has at least 1 token; {word} has {min(sizes)}")
    return sizes


if __name__ == "__main__":
    sys.exit(main())
