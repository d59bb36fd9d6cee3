"""What a load has shown: percentiles, a table, JSON, a plot."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from cpu_time import CpuTime
from playback import Arrival, Playback, play

from sidecar.timebase import samples_to_seconds

PERCENTILES = (50, 95, 99)


@dataclass(frozen=True)
class Reply:
    """One counted request."""

    began_s: float  # after counting began
    first_s: float | None  # from its beginning to the first sound, or word
    took_s: float
    arrivals: tuple[Arrival, ...]
    failure: str  # its kind; empty where there was none

    @property
    def audio_s(self) -> float:
        return samples_to_seconds(sum(arrival.samples for arrival in self.arrivals))

    @cached_property
    def playback(self) -> Playback:
        return play(self.arrivals)


@dataclass(frozen=True)
class Measured:
    """A whole load.

    Args:
        seconds: from the first counted request's beginning to the last one's end.
        audio_s: sound that came in that time, of the uncounted requests under way too.
        client_cpu_s, server_cpu: spent in that time.
        client_late_s: by how much the client's event loop came round too late, each time it looked.
    """

    replies: tuple[Reply, ...]
    seconds: float
    audio_s: float
    client_cpu_s: float
    client_late_s: tuple[float, ...]
    server_cpu: CpuTime | None

    @property
    def good(self) -> list[Reply]:
        return [reply for reply in self.replies if not reply.failure]

    @property
    def failures(self) -> dict[str, int]:
        return dict(Counter(reply.failure for reply in self.replies if reply.failure).most_common())


def numbers(measured: Measured) -> dict[str, Any]:
    """All that is reported, by name; None where there was nothing to measure it on."""
    server = measured.server_cpu
    good, spoken = measured.good, [reply for reply in measured.good if reply.arrivals]
    played = [reply.playback for reply in spoken]
    chunks = sum(len(playback.in_hand_s) for playback in played)
    late = sum(playback.late_chunks for playback in played)
    return {
        "requests": len(measured.replies),
        "failures": measured.failures,
        "seconds": measured.seconds,
        "under_way_mean": sum(reply.took_s for reply in measured.replies) / measured.seconds,
        "first_s": _spread([reply.first_s for reply in good if reply.first_s is not None]),
        "rtf": _spread([reply.took_s / reply.audio_s for reply in spoken]),
        "reply_audio_s": _spread([reply.audio_s for reply in spoken]),
        "underrun_s": _spread([playback.underrun_s for playback in played]),
        "chunks_in_time": 1 - late / chunks if chunks else None,
        "streams_without_gap": sum(not playback.late_chunks for playback in played) / len(played) if played else None,
        "audio_s_per_s": measured.audio_s / measured.seconds,
        "server_cpu_ms_per_audio_s": _per_audio(measured, server.process_s if server else None),
        "server_main_thread_ms_per_audio_s": _per_audio(measured, server.main_thread_s if server else None),
        "client_cpu_ms_per_audio_s": _per_audio(measured, measured.client_cpu_s),
        "client_busy": measured.client_cpu_s / measured.seconds,
        "client_late_s": _spread(measured.client_late_s),
    }


def table(measured: Measured) -> str:
    """Markdown, two columns wide enough for a terminal."""
    found = numbers(measured)
    rows = [
        ("requests counted", f"{found['requests']} in {found['seconds']:.1f} s"),
        ("failed", ", ".join(f"{count} x {kind}" for kind, count in found["failures"].items()) or "none"),
        ("counted requests under way, mean", f"{found['under_way_mean']:.1f}"),
        ("TTFA (chat: first word), ms", _cells(found["first_s"], 1000, ".0f")),
        ("RTF", _cells(found["rtf"], 1, ".3f")),
        ("sound of a reply, s", _cells(found["reply_audio_s"], 1, ".2f")),
        ("underrun of a stream, ms", _cells(found["underrun_s"], 1000, ".0f")),
        ("chunks in time", _share(found["chunks_in_time"])),
        ("streams without a gap", _share(found["streams_without_gap"])),
        ("sound a second, s", f"{found['audio_s_per_s']:.1f}"),
        ("sidecar's CPU for 1 s of sound, ms", _one(found["server_cpu_ms_per_audio_s"])),
        ("of it on the event loop's thread, ms", _one(found["server_main_thread_ms_per_audio_s"])),
        ("this client's CPU for 1 s of sound, ms", _one(found["client_cpu_ms_per_audio_s"])),
        ("this client's share of one core", f"{100 * found['client_busy']:.0f} %"),
        ("this client's event loop late by, ms", _cells(found["client_late_s"], 1000, ".1f")),
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"| {name:{width}} | {value} |" for name, value in [("", ""), ("-" * width, "---"), *rows])


def write_json(measured: Measured, asked: Mapping[str, Any], path: Path) -> None:
    """The numbers, what was asked, and every read of every counted reply: [s after its request began, samples]."""
    replies = [
        {"began_s": reply.began_s, "took_s": reply.took_s, "failure": reply.failure, "arrivals": reply.arrivals}
        for reply in measured.replies
    ]
    content = {"asked": asked, **numbers(measured), "replies": replies}
    path.write_text(json.dumps(content, default=str), encoding="utf-8")


def plot(measured: Measured, path: Path) -> None:
    """TTFA of each request; below it the sound each listener still had when a chunk came, under 0 for a gap."""
    import matplotlib  # noqa: PLC0415  an extra: whoever draws nothing needs it not

    matplotlib.use("Agg")
    from matplotlib import pyplot  # noqa: PLC0415

    figure, (first, hand) = pyplot.subplots(2, 1, figsize=(8, 6), layout="constrained")
    began = [reply.began_s for reply in measured.good if reply.first_s is not None]
    first_ms = [1000 * reply.first_s for reply in measured.good if reply.first_s is not None]
    first.plot(began, first_ms, ".", color="tab:blue")
    for percent, line in zip((50, 95), ("-", "--"), strict=True):
        if first_ms:
            first.axhline(
                float(np.percentile(first_ms, percent)), color="tab:orange", linestyle=line, label=f"p{percent}"
            )
            first.legend()
    for reply in measured.good:
        since = [arrival.at_s - reply.arrivals[0].at_s for arrival in reply.arrivals[1:]]
        hand.plot(since, reply.playback.in_hand_s, color="tab:blue", linewidth=0.5, alpha=0.4)
    hand.axhline(0, color="tab:red", linewidth=1)
    first.set(xlabel="request began, s", ylabel="first sound, ms", ylim=(0, 1.1 * max(first_ms, default=1)))
    hand.set(xlabel="s after a stream's first sound", ylabel="sound in hand, s")
    figure.savefig(path, dpi=110)


def _spread(values: Sequence[float]) -> dict[str, float] | None:
    if not values:
        return None
    found = np.percentile(values, PERCENTILES)
    named = {f"p{percent}": float(value) for percent, value in zip(PERCENTILES, found, strict=True)}
    return named | {"max": max(values)}


def _per_audio(measured: Measured, cpu_s: float | None) -> float | None:
    return None if cpu_s is None or not measured.audio_s else 1000 * cpu_s / measured.audio_s


def _cells(spread: dict[str, float] | None, factor: float, digits: str) -> str:
    return "-" if spread is None else ", ".join(f"{name} {factor * value:{digits}}" for name, value in spread.items())


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f} %"


def _one(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
