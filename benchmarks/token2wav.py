"""Milliseconds a step of flow and vocoder takes, by streams, tokens and precision; how many times faster than speech.

    python benchmarks/token2wav.py                                             # on a GPU, random weights of real size
    python benchmarks/token2wav.py --dtype float16 bfloat16 float32 --uncaptured --eager
    python benchmarks/token2wav.py --batch 1 32 --profile                      # where the time goes
    python benchmarks/token2wav.py --against FOLDER                            # another implementation, in turns

What is timed runs from the tokens on the host to the samples on the host: the first chunk of new streams, and chunks of
--tokens in streams whose windows are full. The voice is --prompt-tokens of random features. --uncaptured launches the
same kernels one by one, --eager is `Token2Wav.step`, what both are held to.

FOLDER has a file against.py with one function,

    def prepare(folder: Path, *, batch: int, tokens: int, prompt_tokens: int, first: bool, dtype: str)
        -> Callable[[], None]

that loads the checkpoint whose token2wav folder it gets (flow.yaml, flow.pt, hift.pt) and returns what is timed: each
call makes the next chunk of so many tokens for so many streams of one voice, or the first chunk of new ones, and comes
back with the samples on the host. What it cannot do it answers with NotImplementedError, and the table leaves out.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import logging
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from machine import machine
from steps_to_time import Captured, Case, Eager, Prepare

from sidecar.timebase import tokens_to_seconds
from sidecar.token2wav import Token2Wav
from sidecar.token2wav.synthetic import SIZES, write_token2wav


@dataclass(frozen=True)
class Timed:
    """One line of the table."""

    implementation: str
    dtype: str
    batch: int
    tokens: int
    first: bool
    ms: float  # median
    spread_ms: float  # half of what lies between the fastest and the slowest
    x_real_time: float


@dataclass(frozen=True)
class Memory:
    """10^6 bytes on the GPU."""

    dtype: str
    mb_per_stream: float
    graphs_mb: float
    reserved_mb: float  # by torch, at the most: weights, a voice, slots, and what passes between kernels


def main(arguments: Sequence[str] | None = None) -> int:
    asked = parser().parse_args(arguments)
    if asked.first_tokens > min(asked.tokens):
        parser().error(f"--first-tokens {asked.first_tokens} is above --tokens {min(asked.tokens)}; chunks only grow")
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    print(f"{machine()}, {asked.checkpoint or 'random weights, ' + asked.size}\n")
    with checkpoint(asked.checkpoint, asked.size) as folder:
        timed, memory = measure(folder, asked)
    print(table(timed))
    for taken in memory:
        print(
            f"\n{taken.dtype}: {taken.mb_per_stream:.1f} MB a stream, graphs {taken.graphs_mb:.0f} MB, "
            f"{taken.reserved_mb:.0f} MB reserved at the most"
        )
    if asked.json:
        found = {"machine": machine(), "steps": [asdict(line) for line in timed], "memory": list(map(asdict, memory))}
        asked.json.write_text(json.dumps(found, indent=1), encoding="utf-8")
    return 0


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, metavar="FOLDER", help="its token2wav, instead of random weights")
    parser.add_argument("--size", choices=sorted(SIZES), default="full", help="of the random weights (default: full)")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", nargs="+", default=["float16"], choices=["float16", "bfloat16", "float32"])
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--first-tokens", type=int, default=8, help="of a stream's first chunk (default: 8)")
    parser.add_argument("--tokens", nargs="+", type=int, default=[25], help="of later chunks (default: 25)")
    parser.add_argument("--prompt-tokens", type=int, default=226, help="of the voice (default: 226, 9 s)")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--uncaptured", action="store_true")
    parser.add_argument("--eager", action="store_true")
    parser.add_argument("--against", type=Path, metavar="FOLDER")
    parser.add_argument("--profile", action="store_true", help="milliseconds by part, then by kernel")
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser


def measure(folder: Path, asked: argparse.Namespace) -> tuple[list[Timed], list[Memory]]:
    timed: list[Timed] = []
    memory: list[Memory] = []
    for dtype in asked.dtype:
        found, taken = measure_in(dtype, folder, asked)
        timed += found
        memory.append(taken)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return timed, memory


def measure_in(dtype: str, folder: Path, asked: argparse.Namespace) -> tuple[list[Timed], Memory]:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    token2wav = Token2Wav.from_folder(folder, device=asked.device, dtype=getattr(torch, dtype))
    voice = Captured.voice(token2wav, asked.prompt_tokens)
    sizes = sorted({asked.first_tokens, *asked.tokens})
    captured = Captured(token2wav, voice, sizes, max(asked.batch))
    memory = taken(captured, dtype)  # before others take any
    ways: dict[str, Prepare] = {"captured": captured.prepare}
    if asked.uncaptured:
        ways["uncaptured"] = Captured(token2wav, voice, sizes, max(asked.batch), capture=False).prepare
    if asked.eager:
        ways["eager"] = Eager(token2wav, voice).prepare
    if asked.against:
        ways[asked.against.name] = against(asked.against, folder, asked.prompt_tokens, dtype)
    wanted = cases(asked.batch, asked.first_tokens, asked.tokens)
    timed = [line for case in wanted for line in time_in_turns(ways, case, dtype, asked.repeats)]
    if asked.profile:
        from kernel_times import print_profile  # noqa: PLC0415 - brings the profiler

        print_profile(captured, wanted, dtype)
    return timed, memory


def cases(batches: Sequence[int], first_tokens: int, tokens: Sequence[int]) -> list[Case]:
    chunks = [(first_tokens, True), *((size, False) for size in tokens)]
    return [Case(batch, size, first=first) for size, first in chunks for batch in batches]


def time_in_turns(implementations: dict[str, Prepare], case: Case, dtype: str, repeats: int) -> list[Timed]:
    """They take turns, so that all meet the same machine."""
    runs: dict[str, Callable[[], None]] = {}
    for name, prepare in implementations.items():
        try:
            runs[name] = prepare(case)
        except NotImplementedError:
            continue
    took: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + 2):
        for name, run in runs.items():
            started_at = time.perf_counter()
            run()
            if repeat > 1:  # the first ones warm up
                took[name].append(1000 * (time.perf_counter() - started_at))
    speech_ms = 1000 * case.batch * tokens_to_seconds(case.tokens)
    return [
        Timed(
            name, dtype, case.batch, case.tokens, case.first, statistics.median(times), (max(times) - min(times)) / 2,
            speech_ms / statistics.median(times),
        )
        for name, times in took.items()
    ]  # fmt: skip


def table(timed: Sequence[Timed]) -> str:
    lines = ["| tokens | streams | precision | | ms | x real time |", "|---|---|---|---|---|---|"]
    for line in timed:
        lines.append(
            f"| {'first ' if line.first else ''}{line.tokens} | {line.batch} | {line.dtype} | {line.implementation} "
            f"| {line.ms:.2f} ± {line.spread_ms:.2f} | {line.x_real_time:.0f} |"
        )
    return "\n".join(lines)


def taken(captured: Captured, dtype: str) -> Memory:
    reserved = torch.cuda.max_memory_reserved() if torch.cuda.is_available() else 0
    memory = captured.steps.memory
    return Memory(dtype, memory.bytes_per_slot / 1e6, memory.graphs / 1e6, reserved / 1e6)


def against(folder: Path, checkpoint_folder: Path, prompt_tokens: int, dtype: str) -> Prepare:
    spec = importlib.util.spec_from_file_location("against", folder / "against.py")
    assert spec is not None and spec.loader is not None, f"{folder} has no against.py"
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def prepare(case: Case) -> Callable[[], None]:
        run: Callable[[], None] = module.prepare(
            checkpoint_folder,
            batch=case.batch,
            tokens=case.tokens,
            prompt_tokens=prompt_tokens,
            first=case.first,
            dtype=dtype,
        )
        return run

    return prepare


@contextmanager
def checkpoint(given: Path | None, size: str) -> Iterator[Path]:
    """The token2wav folder of a checkpoint, written for the while if none is given."""
    if given is not None:
        yield given / "token2wav" if (given / "token2wav").exists() else given
        return
    with tempfile.TemporaryDirectory() as folder:
        write_token2wav(Path(folder), size)
        yield Path(folder) / "token2wav"


if __name__ == "__main__":
    sys.exit(main())
