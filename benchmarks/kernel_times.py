"""Where a step's time goes: milliseconds of its parts, each captured by itself, and of its kernels, by the profiler."""

from __future__ import annotations

import re
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial

import torch
from steps_to_time import Captured, Case, a_chunk
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from sidecar.token2wav.gpu.noise import mel_noise
from sidecar.token2wav.gpu.rows import Rows
from sidecar.token2wav.gpu.step import GpuToken2Wav

KERNELS_SHOWN = 25
NAME_LENGTH = 70
REPEATS = 10
#: The profiler takes seconds to sort out the thousands of kernels of one.
PROFILED_RUNS = 2


@torch.inference_mode()
def print_profile(captured: Captured, cases: Sequence[Case], dtype: str) -> None:
    step = captured.steps.step
    print(f"\n| {dtype}: part | " + " | ".join(f"{case.batch} x {case.tokens}" for case in cases) + " |")
    print("|---" * (1 + len(cases)) + "|")
    by_part = [part_times(step, rows_of(captured, case)) for case in cases]
    for part in by_part[0]:
        print(f"| {part} | " + " | ".join(f"{times[part]:.2f} ms" for times in by_part) + " |")
    for case in cases:
        rows = rows_of(captured, case)
        print_kernels(replayed(partial(step.step, rows)), f"{dtype}, {case.batch} x {case.tokens} tokens")


def rows_of(captured: Captured, case: Case) -> Rows:
    """Lines of streams whose windows are full, on the device."""
    chunk = a_chunk(captured.token2wav, case.tokens)
    host = Rows.empty(case.batch, case.tokens, "cpu")
    vocab_size = captured.token2wav.speech_token_count
    host.write([playing.row(chunk, vocab_size=vocab_size) for playing in captured.full(case.batch)])
    return Rows(host.control.to(captured.steps.step.device))


def part_times(step: GpuToken2Wav, rows: Rows) -> dict[str, float]:
    """Milliseconds of each part, in order."""
    mu = step.encoder(rows, step.slots)
    noise = mel_noise(rows, mu.shape[-1])
    mel = step.solver(mu, noise, rows, step.slots)
    parts: dict[str, Callable[[], object]] = {
        "encoder": lambda: step.encoder(rows, step.slots),
        "noise of the mel": lambda: mel_noise(rows, mu.shape[-1]),
        "solver, all flow steps": lambda: step.solver(mu, noise, rows, step.slots),
        "vocoder": lambda: step.vocoder(mel, rows, step.slots),
        "all": lambda: step.step(rows),
    }
    return {name: gpu_ms(replayed(part)) for name, part in parts.items()}


def replayed(run: Callable[[], object]) -> Callable[[], None]:
    """Captured, so that no kernel waits for the CPU."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        run()
        stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        run()
    return graph.replay


def gpu_ms(run: Callable[[], None]) -> float:
    """Median, between two events on the GPU."""
    took: list[float] = []
    for repeat in range(REPEATS + 1):
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        before.record()
        run()
        after.record()
        after.synchronize()
        if repeat:  # the first warms up
            took.append(before.elapsed_time(after))
    return statistics.median(took)


def print_kernels(run: Callable[[], None], title: str) -> None:
    """Kernels by the time they take in one run, all of one name together."""
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        for _ in range(PROFILED_RUNS):
            run()
        torch.cuda.synchronize()
    launches: dict[str, int] = defaultdict(int)
    took_us: dict[str, float] = defaultdict(float)
    for event in profiled.events() or ():
        if event.device_type == DeviceType.CUDA:
            name = short(event.name)
            launches[name] += 1
            took_us[name] += event.time_range.elapsed_us()
    total_us = sum(took_us.values())
    kernels = sum(launches.values()) // PROFILED_RUNS
    print(f"\n{title}: {kernels} kernels, {total_us / PROFILED_RUNS / 1000:.2f} ms in them")
    print("| kernel | launches | ms | of all | us each |\n|---|---|---|---|---|")
    for name in sorted(took_us, key=lambda name: -took_us[name])[:KERNELS_SHOWN]:
        print(
            f"| {name} | {launches[name] // PROFILED_RUNS} | {took_us[name] / PROFILED_RUNS / 1000:.3f} "
            f"| {took_us[name] / total_us:.1%} | {took_us[name] / launches[name]:.1f} |"
        )


def short(name: str) -> str:
    """Without return type and arguments."""
    return re.sub(r"^void |\(.*", "", name)[:NAME_LENGTH]
