"""The command: flags and a sound file in, a picture out."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sidecar.audio.decode import decode_recording
from sidecar.audio.resample import resample
from sidecar.errors import SidecarError, UnusableAudio
from sidecar.inspect.borders import Border, borders, listed_sizes
from sidecar.settings import StreamSettings
from sidecar.streaming.chunking import ChunkPlan
from sidecar.timebase import SAMPLE_RATE_HZ, samples_to_seconds

logger = logging.getLogger(__name__)

#: The mel mirrors the sound's edges.
LEAST_SAMPLES = 721
LONGEST_S = 600.0

_DESCRIPTION = """\
Draw waveform, level and mel of a reply that was streamed, with its chunk borders marked. Give it the file as the server
sent it, from its first sample on, in wav, pcm's wav or flac: mp3, opus and aac may shift it by some milliseconds.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    wanted = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if find_spec("matplotlib") is None:
        logger.error("drawing needs matplotlib: pip install 'step-audio-serve[plot]'")
        return 1
    from sidecar.inspect.picture import draw  # noqa: PLC0415  matplotlib need not be installed

    try:
        samples = read_sound(wanted.file)
        found = borders(samples.size, wanted.chunk_tokens)
        check_zoom(wanted.zoom, found)
        out = wanted.out or wanted.file.with_suffix(".png")
        draw(samples, found, out, zoom=wanted.zoom)
    except (SidecarError, OSError) as error:
        logger.error("%s", error)
        return 1
    for number, border in enumerate(found, start=1):
        logger.info("border %d: sample %d, %.3f s", number, border.sample, samples_to_seconds(border.sample))
    logger.info("%s written", out)
    return 0


def read_sound(path: Path) -> NDArray[np.float32]:
    """Samples (S,) at 24 kHz, the mean of all channels.

    Raises:
        SidecarError: no sound that can be read, or too little of it.
        OSError: no such file.
    """
    try:
        recording = decode_recording(path.read_bytes(), max_seconds=LONGEST_S)
    except SidecarError as error:
        raise UnusableAudio(f"{path}: {error.message}") from error
    mono = recording.samples.mean(axis=0, dtype=np.float32)
    samples: NDArray[np.float32] = resample(mono, recording.sample_rate_hz, SAMPLE_RATE_HZ)
    if samples.size < LEAST_SAMPLES:
        raise UnusableAudio(f"{path} has {samples.size} samples at 24 kHz; a picture needs {LEAST_SAMPLES}")
    return samples


def check_zoom(zoom: int | None, found: Sequence[Border]) -> None:
    """
    Raises:
        UnusableAudio: there is no border with this number.
    """
    if zoom is not None and not 1 <= zoom <= len(found):
        raise UnusableAudio(f"--zoom {zoom}: this sound has the borders 1 to {len(found)}" if found else
                            f"--zoom {zoom}: this sound is one chunk, it has no border")  # fmt: skip


def _parser() -> argparse.ArgumentParser:
    server = StreamSettings()
    parser = argparse.ArgumentParser(prog="python -m sidecar.inspect", description=_DESCRIPTION)
    parser.add_argument("file", metavar="FILE.wav", type=Path, help="a reply's sound")
    parser.add_argument(
        "--chunk-tokens",
        metavar="N,N,...",
        type=_plan,
        default=ChunkPlan(first_chunk_tokens=server.first_chunk_tokens, chunk_tokens=server.chunk_tokens),
        help="speech tokens in each chunk, the last number repeats, as in 10,20,25 (default: the server's own default)",
    )
    parser.add_argument("--zoom", metavar="BORDER", type=int, help="show this border alone, the first is 1")
    parser.add_argument("--out", metavar="PNG", type=Path, help="the picture (default: FILE.png beside the sound)")
    return parser


def _plan(word: str) -> ChunkPlan:
    sizes = [int(size) for size in word.split(",")]
    if min(sizes) < 1:
        raise argparse.ArgumentTypeError(f"a chunk has at least 1 token; {word} has {min(sizes)}")
    return listed_sizes(sizes)


if __name__ == "__main__":
    sys.exit(main())
