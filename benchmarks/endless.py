"""One stream that does not end: memory and milliseconds a chunk over time, ours beside the authors' way.

    python benchmarks/endless.py --minutes 10 --plot docs/endless.png

Streams through the scheduler and token2wav, each policy in a process of its own: ours keeps the prompt and a window of
recent speech, the authors' code cuts its estimator's cache elsewhere and never its encoder's. The voice is 9.04 s of
random features, as long as the default voice. Without --checkpoint the weights are the tiny synthetic ones.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import compress
from pathlib import Path
from statistics import linear_regression, median
from typing import Any, Literal

import numpy as np
import torch
from machine import machine

from sidecar.settings import StreamSettings
from sidecar.streaming.chunking import ChunkPlan
from sidecar.streaming.scheduler import StreamScheduler
from sidecar.streaming.steps import EagerSteps
from sidecar.streaming.stream import SpeechStream
from sidecar.timebase import TOKEN_RATE_HZ, samples_to_seconds, tokens_to_frames
from sidecar.token2wav import Token2Wav, VoiceFeatures
from sidecar.token2wav.history import RECENT, REFERENCE, HistoryPolicy
from sidecar.token2wav.synthetic import write_token2wav

POLICIES: dict[str, HistoryPolicy] = {"ours": RECENT, "the authors'": REFERENCE}
PROMPT_TOKENS = 226
#: Until the windows are full and the allocator has found its sizes.
WARM_UP_MINUTES = 2
SEED = 1


@dataclass(frozen=True)
class Setup:
    """What is streamed, on what."""

    folder: Path  # a checkpoint's token2wav
    minutes: float
    chunk_tokens: int = StreamSettings.chunk_tokens
    device: str = "cpu"
    dtype: str = "float32"


@dataclass(frozen=True)
class Chunk:
    """One step of the stream, and what the process has when it is over."""

    minutes: float  # of speech so far
    ms: float  # by the clock
    cpu_ms: float  # of the whole process, so others on the machine don't count
    rss_mb: float
    gpu_mb: float  # allocated by torch; 0 without a GPU


def rss_mb(pid: int | str = "self") -> float:
    """Memory of a process that is in RAM, in 10^6 bytes."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def slope_kb_a_minute(minutes: Sequence[float], megabytes: Sequence[float]) -> float:
    """By least squares, between the warm-up and the last chunk, with which the stream's state is gone."""
    late = [WARM_UP_MINUTES <= at < minutes[-1] for at in minutes]
    return 1000 * linear_regression(list(compress(minutes, late)), list(compress(megabytes, late))).slope


def ms_in_minute(chunks: Sequence[Chunk], minute: int, *, of: Literal["ms", "cpu_ms"] = "ms") -> float:
    """Median of a chunk's time (`ms` or `cpu_ms`) in the first minute (1), the second, ..."""
    taken: list[float] = [getattr(chunk, of) for chunk in chunks if minute - 1 < chunk.minutes <= minute]
    return median(taken)


def measured(setup: Setup, policy: str) -> list[Chunk]:
    """One stream of one policy, in a process of its own."""
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=fresh) as process:
        return process.submit(_measure, setup, policy).result()


def _measure(setup: Setup, policy: str) -> list[Chunk]:
    token2wav = Token2Wav.from_folder(setup.folder, device=setup.device, dtype=getattr(torch, setup.dtype))
    token2wav.flow.history = POLICIES[policy]
    return asyncio.run(_stream(token2wav, setup))


async def _stream(token2wav: Token2Wav, setup: Setup) -> list[Chunk]:
    """Feeds a chunk's tokens whenever sound comes, so that nothing waits but what the chunks need."""
    step_s: list[float] = []
    plan = ChunkPlan(min(StreamSettings.first_chunk_tokens, setup.chunk_tokens), setup.chunk_tokens)
    scheduler = StreamScheduler(EagerSteps(token2wav), plan, on_step=lambda step: step_s.append(step.seconds))
    scheduler.start()
    stream = scheduler.open(token2wav.open_voice(_voice(token2wav)), seed=SEED)
    chunks: list[Chunk] = []
    feeding = _feeding(stream, token2wav, setup)
    next(feeding)
    spoken, cpu_s = 0, time.process_time()
    async for samples in stream.samples():
        spoken += samples.size
        gpu_mb = torch.cuda.memory_allocated() / 1e6 if torch.cuda.is_available() else 0.0
        before, cpu_s = cpu_s, time.process_time()
        minutes = samples_to_seconds(spoken) / 60
        chunks.append(Chunk(minutes, 1000 * step_s[-1], 1000 * (cpu_s - before), rss_mb(), gpu_mb))
        next(feeding, None)
    await scheduler.close()
    return chunks


def _voice(token2wav: Token2Wav) -> VoiceFeatures:
    drawn, config = torch.Generator().manual_seed(SEED), token2wav.flow.config
    return VoiceFeatures(
        prompt_tokens=torch.randint(0, config.vocab_size, (PROMPT_TOKENS,), generator=drawn),
        prompt_mel=torch.randn(tokens_to_frames(PROMPT_TOKENS), config.output_size, generator=drawn) - 5,
        speaker=torch.randn(config.spk_embed_dim, generator=drawn),
    )


def _feeding(stream: SpeechStream, token2wav: Token2Wav, setup: Setup) -> Iterator[None]:
    """A chunk's tokens each time, the first with the look-ahead too; after the last of them the stream's end."""
    drawn = np.random.default_rng(SEED)
    left, size = round(60 * setup.minutes * TOKEN_RATE_HZ), setup.chunk_tokens + token2wav.LOOKAHEAD_TOKENS
    while left > 0:
        stream.feed(drawn.integers(0, token2wav.speech_token_count, min(size, left)).tolist())
        left, size = left - size, setup.chunk_tokens
        yield
    stream.finish()


def table(runs: dict[str, list[Chunk]]) -> str:
    """Markdown: a column for each policy, the slopes, then milliseconds a chunk by minute."""
    lines = ["| | " + " | ".join(runs) + " |", "|---" * (len(runs) + 1) + "|"]
    sizes = [("RSS", "rss_mb")] + [("GPU memory", "gpu_mb")] * torch.cuda.is_available()
    for title, field in sizes:
        rows = [[getattr(chunk, field) for chunk in chunks] for chunks in runs.values()]
        minutes = [[chunk.minutes for chunk in chunks] for chunks in runs.values()]
        if minutes[0][-1] > WARM_UP_MINUTES:
            slopes = [f"{slope_kb_a_minute(at, size):,.0f}" for at, size in zip(minutes, rows, strict=True)]
            lines.append(f"| {title}, KB a minute | " + " | ".join(slopes) + " |")
        lines.append(f"| {title} at most, MB | " + " | ".join(f"{max(row):,.0f}" for row in rows) + " |")
    for minute in range(1, int(min(chunks[-1].minutes for chunks in runs.values())) + 1):
        cells = [f"{ms_in_minute(chunks, minute):.1f}" for chunks in runs.values()]
        lines.append(f"| ms a chunk in minute {minute} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(runs: dict[str, list[Chunk]], path: Path) -> None:
    """Memory above, milliseconds a chunk below, over minutes of speech."""
    import matplotlib  # noqa: PLC0415  an extra: whoever draws nothing needs it not

    matplotlib.use("Agg")
    from matplotlib import pyplot  # noqa: PLC0415

    on_gpu = any(chunk.gpu_mb for chunks in runs.values() for chunk in chunks)
    figure, (memory, step) = pyplot.subplots(2, 1, sharex=True, figsize=(8, 6), layout="constrained")
    for (name, chunks), colour in zip(runs.items(), ("tab:blue", "tab:orange"), strict=True):
        minutes = [chunk.minutes for chunk in chunks]
        sizes = [chunk.gpu_mb if on_gpu else chunk.rss_mb for chunk in chunks]
        memory.plot(minutes[:-1], sizes[:-1], colour, label=name)  # with the last chunk the stream's state is gone
        step.plot(minutes, [chunk.ms for chunk in chunks], colour, linewidth=0.5, alpha=0.4)
        middles = [minute - 0.5 for minute in range(1, int(minutes[-1]) + 1)]
        step.plot(middles, [ms_in_minute(chunks, round(middle + 0.5)) for middle in middles], "o-", color=colour)
    step.set_ylim(0, 3 * median(chunk.ms for chunks in runs.values() for chunk in chunks))
    memory.set_ylabel(f"{'GPU memory' if on_gpu else 'resident memory'}, MB")
    step.set_ylabel("ms a chunk (dots: median of a minute)")
    step.set_xlabel("minutes of speech in one stream")
    memory.legend(title="what a stream remembers")
    figure.savefig(path, dpi=110)


@contextmanager
def token2wav_folder(checkpoint: Path | None) -> Iterator[Path]:
    if checkpoint is not None:
        yield checkpoint / "token2wav"
        return
    with tempfile.TemporaryDirectory() as folder:
        write_token2wav(Path(folder), "tiny")
        yield Path(folder) / "token2wav"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, help="checkpoint folder (default: a tiny one, made for this run)")
    parser.add_argument("--minutes", type=float, default=10, help="minutes of speech to stream (default: 10)")
    parser.add_argument(
        "--chunk-tokens", type=int, default=Setup.chunk_tokens, help="speech tokens a chunk (default: %(default)s)"
    )
    parser.add_argument("--device", default=Setup.device, help="cpu or cuda (default: %(default)s)")
    parser.add_argument(
        "--dtype", default=Setup.dtype, choices=("float32", "bfloat16", "float16"), help="(default: %(default)s)"
    )
    parser.add_argument("--json", type=Path, help="write every chunk's numbers here")
    parser.add_argument("--plot", type=Path, help="draw memory and time here; needs matplotlib")
    given = parser.parse_args(argv)
    with token2wav_folder(given.checkpoint) as folder:
        setup = Setup(folder, given.minutes, given.chunk_tokens, given.device, given.dtype)
        runs = {policy: measured(setup, policy) for policy in POLICIES}
    print(f"{machine()}; {given.device}, {given.dtype}, {given.minutes:g} minutes, {given.chunk_tokens} tokens a chunk")
    print(table(runs))
    if given.json:
        chunks: dict[str, Any] = {policy: [asdict(chunk) for chunk in made] for policy, made in runs.items()}
        given.json.write_text(json.dumps({"machine": machine(), "policies": chunks}, indent=1), encoding="utf-8")
    if given.plot:
        plot(runs, given.plot)


if __name__ == "__main__":
    main()
