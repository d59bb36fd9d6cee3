"""What tests of scheduling are made of: a clock of theirs, and a device that keeps account of who uses its memory."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from sidecar.streaming.chunking import Chunk
from sidecar.streaming.steps import Samples
from sidecar.timebase import tokens_to_samples
from sidecar.token2wav.state import OpenedVoice


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def tokens(count: int, seed: int = 0) -> list[int]:
    drawn = random.Random(seed)
    return [drawn.randrange(6561) for _ in range(count)]


@dataclass(eq=False)
class Seat:
    """A stream's memory on the device."""

    seed: int
    in_step: bool = False
    closed: bool = False


@dataclass(frozen=True)
class Taken:
    """A step that was begun."""

    lane: int
    seeds: list[int]
    new_tokens: list[int]


@dataclass
class Device:
    """`Steps` that last as long as the test wants: for `step_s`, and until `go_on` is set.

    Every sample is its stream's seed, and there are as many as a chunk has new tokens.
    """

    lanes: int = 1
    most_rows: int = 32
    cheap_rows: int = 1
    seats: int = 1000
    step_s: float = 0.0
    steps: list[Taken] = field(default_factory=list)
    open_seats: int = 0

    def __post_init__(self) -> None:
        self.go_on = threading.Event()
        self.go_on.set()
        self.busy = [False] * self.lanes

    def open(self, voice: OpenedVoice, *, seed: int) -> Seat | None:
        if self.open_seats == self.seats:
            return None
        self.open_seats += 1
        return Seat(seed)

    def close(self, playing: Seat) -> None:
        assert not playing.closed, "memory was given back twice"
        assert not playing.in_step, "memory was given back while a step of it is under way"
        playing.closed = True
        self.open_seats -= 1

    def shareable(self, leader: tuple[Seat, Chunk], other: tuple[Seat, Chunk]) -> bool:
        return other[1].new_tokens <= leader[1].new_tokens

    def submit(self, rows: Sequence[tuple[Seat, Chunk]], *, lane: int) -> UnderWay:
        assert not self.busy[lane], f"a second step came into lane {lane}"
        assert len(rows) <= self.most_rows
        assert all(self.shareable(rows[0], row) for row in rows)
        for seat, _ in rows:
            assert not seat.in_step and not seat.closed, "a stream is in two steps, or its memory is another's"
            seat.in_step = True
        self.busy[lane] = True
        seeds = [seat.seed for seat, _ in rows]
        self.steps.append(Taken(lane, seeds, [chunk.new_tokens for _, chunk in rows]))
        return UnderWay(self, rows, lane)


@dataclass(frozen=True)
class UnderWay:
    device: Device
    rows: Sequence[tuple[Seat, Chunk]]
    lane: int

    def wait(self) -> list[Samples]:
        time.sleep(self.device.step_s)
        assert self.device.go_on.wait(20), "the test has left a step under way"
        for seat, _ in self.rows:
            seat.in_step = False
        self.device.busy[self.lane] = False
        return [np.full(tokens_to_samples(chunk.new_tokens), seat.seed / 1000, np.float32) for seat, chunk in self.rows]
