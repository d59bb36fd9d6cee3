"""Every number that the server counts about itself, in Prometheus' text form. Names end in their unit.

Counting may happen in any thread: each metric has its own lock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from threading import Lock
from typing import Protocol

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metric(Protocol):
    name: str
    help: str
    kind: str

    def lines(self) -> Iterator[str]: ...


class Counter:
    """Only grows. With a `label`, one number for each of its values."""

    kind = "counter"

    def __init__(self, name: str, help: str, *, label: str | None = None) -> None:
        self.name, self.help = name, help
        self._label = label
        self._lock = Lock()
        self._counts: dict[str, float] = {} if label else {"": 0.0}

    def add(self, amount: float = 1.0, label_value: str = "") -> None:
        with self._lock:
            self._counts[label_value] = self._counts.get(label_value, 0.0) + amount

    def lines(self) -> Iterator[str]:
        with self._lock:
            counts = sorted(self._counts.items())
        for value, count in counts:
            label = f'{{{self._label}="{value}"}}' if self._label else ""
            yield f"{self.name}{label} {_written(count)}"


class Gauge:
    """A number read when somebody asks."""

    kind = "gauge"

    def __init__(self, name: str, help: str, read: Callable[[], float]) -> None:
        self.name, self.help = name, help
        self._read = read

    def lines(self) -> Iterator[str]:
        yield f"{self.name} {_written(self._read())}"


class Histogram:
    """How often a value was at most each of `bounds`. With a `label`, one histogram for each of its values."""

    kind = "histogram"

    def __init__(self, name: str, help: str, bounds: Sequence[float], *, label: str | None = None) -> None:
        self.name, self.help = name, help
        self._bounds = (*bounds, float("inf"))
        self._label = label
        self._lock = Lock()
        self._counts: dict[str, list[int]] = {}
        self._sums: dict[str, float] = {}
        if label is None:
            self._begin("")

    def observe(self, value: float, label_value: str = "") -> None:
        with self._lock:
            if label_value not in self._counts:
                self._begin(label_value)
            self._sums[label_value] += value
            counts = self._counts[label_value]
            for index, bound in enumerate(self._bounds):
                counts[index] += value <= bound

    def lines(self) -> Iterator[str]:
        with self._lock:
            seen = [(value, list(counts), self._sums[value]) for value, counts in sorted(self._counts.items())]
        for value, counts, total in seen:
            label = f'{self._label}="{value}"' if self._label else ""
            beside, alone = (f"{label},", f"{{{label}}}") if label else ("", "")
            for bound, count in zip(self._bounds, counts, strict=True):
                yield f'{self.name}_bucket{{{beside}le="{"+Inf" if bound == float("inf") else f"{bound:g}"}"}} {count}'
            yield f"{self.name}_sum{alone} {_written(total)}"
            yield f"{self.name}_count{alone} {counts[-1]}"

    def _begin(self, label_value: str) -> None:
        self._counts[label_value] = [0] * len(self._bounds)
        self._sums[label_value] = 0.0


def _written(value: float) -> str:
    """All its digits: a counter that is rounded stands still, then jumps."""
    return str(int(value)) if value == int(value) else repr(float(value))


class Metrics:
    """All of them.

    Args:
        streams_running: reads how many slots are taken.
        slots: how many there are.
        chunks_waiting: reads how many chunks wait for a step.
    """

    def __init__(self, *, streams_running: Callable[[], int], slots: int, chunks_waiting: Callable[[], int]) -> None:
        self.requests = Counter("sidecar_requests_total", "Requests for speech, by how they ended.", label="outcome")
        self.ttfa_seconds = Histogram(
            "sidecar_ttfa_seconds",
            "From a request's arrival to its first sound.",
            (0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 2, 5, 10, 30),
        )
        self.rtf_ratio = Histogram(
            "sidecar_rtf_ratio",
            "Seconds a reply took for each second of its sound.",
            (0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 5, 10),
        )
        self.step_seconds = Histogram(
            "sidecar_step_seconds",
            "From a token2wav step's beginning to its samples, by what leads it: a first chunk or a later one.",
            (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5),
            label="chunk",
        )
        self.step_streams = Histogram(
            "sidecar_step_streams",
            "Streams that shared one token2wav step, by what leads it.",
            (1, 2, 4, 8, 16, 32, 64),
            label="chunk",
        )
        self.loop_lag_seconds = Histogram(
            "sidecar_loop_lag_seconds",
            "How much too late the event loop came back to a timer of every 20 ms.",
            (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5),
        )
        self.audio_seconds = Counter("sidecar_audio_seconds_total", "Sound made.")
        self.underruns = Counter(
            "sidecar_underruns_total", "Times a streamed reply's sound came too late for playback."
        )
        self.streams_running = Gauge("sidecar_streams_running", "Streams that hold a slot.", streams_running)
        self.chunks_waiting = Gauge(
            "sidecar_chunks_waiting", "Chunks that have all their tokens and no step yet.", chunks_waiting
        )
        self.slots = Gauge("sidecar_stream_slots", "Streams there can be at once.", lambda: slots)

    def render(self) -> str:
        metrics: list[Metric] = [
            metric for metric in vars(self).values() if isinstance(metric, Counter | Gauge | Histogram)
        ]
        return "".join(
            f"# HELP {metric.name} {metric.help}\n# TYPE {metric.name} {metric.kind}\n"
            + "".join(f"{line}\n" for line in metric.lines())
            for metric in metrics
        )
