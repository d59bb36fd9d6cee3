"""A load on a server: who asks when, which requests count, and when it is over."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from cpu_time import CpuTime
from heard import Heard
from listener import Ask, Failed, Server, listen
from load_report import Measured, Reply
from playback import play

from sidecar.timebase import samples_to_seconds

#: After a refusal: a server that says no at once must not be asked thousands of times a second.
PAUSE_AFTER_FAILURE_S = 1.0
#: How often the client looks whether its own event loop comes round in time.
TICK_S = 0.01
SEED = 1


@dataclass(frozen=True, kw_only=True)
class Load:
    """Who asks when, and what counts."""

    listeners: int = 1
    rate_hz: float | None = None  # requests a second; instead of listeners
    stagger_s: float = 1.0  # the listeners begin one after another within this time
    play_out: bool = False
    warm_up: int = 1  # requests that are not counted
    requests: int = 100  # that are, at most
    seconds: float | None = None  # in which they begin
    timeout_s: float = 120.0


class Run:
    """One load on one server.

    Args:
        asking: makes the request with this number.
        server_cpu: reads what the server has used; None where it is not on this machine.
    """

    def __init__(
        self, server: Server, asking: Callable[[int], Ask], load: Load, server_cpu: Callable[[], CpuTime] | None = None
    ) -> None:
        self._server, self._asking, self._load = server, asking, load
        self._server_cpu = server_cpu
        self._numbers = itertools.count()
        self._replies: dict[int, Reply] = {}
        self._heard: list[tuple[float, Heard]] = []  # of every request, ended or not, and when it began
        self._counted = self._counted_under_way = 0
        self._counting_since_s: float | None = None
        self._cpu_before: tuple[float, CpuTime | None] = (0.0, None)
        self._late_ticks_s: list[float] = []
        self._over = asyncio.Event()

    async def measure(self) -> Measured:
        async with asyncio.TaskGroup() as group:
            ticking = group.create_task(self._tick())
            loading = group.create_task(self._everyone() if self._load.rate_hz is None else self._passers_by())
            await self._over.wait()
            ended_s, cpu_after = time.perf_counter(), self._cpu()
            ticking.cancel()
            loading.cancel()
        assert self._counting_since_s is not None, "it is over only after something was counted"
        return Measured(
            replies=tuple(self._replies[number] for number in sorted(self._replies)),
            seconds=ended_s - self._counting_since_s,
            audio_s=self._audio_between(self._counting_since_s, ended_s),
            client_cpu_s=cpu_after[0] - self._cpu_before[0],
            client_late_s=tuple(self._late_ticks_s),
            server_cpu=_spent(self._cpu_before[1], cpu_after[1]),
        )

    async def _everyone(self) -> None:
        apart_s = self._load.stagger_s / self._load.listeners
        async with asyncio.TaskGroup() as group:
            for number in range(self._load.listeners):
                group.create_task(self._listener(number * apart_s))

    async def _listener(self, begins_after_s: float) -> None:
        await asyncio.sleep(begins_after_s)
        while True:
            began_s = time.perf_counter()
            heard = await self._one()
            if heard is None:
                await asyncio.sleep(PAUSE_AFTER_FAILURE_S)
            elif self._load.play_out:
                await asyncio.sleep(began_s + _played_until_s(heard) - time.perf_counter())

    async def _passers_by(self) -> None:
        assert self._load.rate_hz is not None, "chosen by it"
        drawn = random.Random(SEED)
        async with asyncio.TaskGroup() as group:
            due_s = time.perf_counter()
            while True:
                group.create_task(self._one())
                # from when it was due, not from now: a late client must not thin out the load
                due_s += drawn.expovariate(self._load.rate_hz)
                await asyncio.sleep(due_s - time.perf_counter())

    async def _one(self) -> Heard | None:
        """One request; None where it failed."""
        number = next(self._numbers)
        counts = self._begin(number)
        ask, began_s, failure = self._asking(number), time.perf_counter(), ""
        heard = ask.heard()
        self._heard.append((began_s, heard))
        try:
            await listen(self._server, ask, heard, timeout_s=self._load.timeout_s)
        except Failed as error:
            failure = str(error)
        if counts:
            since_s = began_s - (self._counting_since_s or began_s)
            took_s = time.perf_counter() - began_s
            self._replies[number] = Reply(since_s, heard.first_s, took_s, tuple(heard.arrivals), failure)
            self._counted_under_way -= 1
            self._end_if_all_is_counted()
        return None if failure else heard

    def _begin(self, number: int) -> bool:
        """Whether this request counts."""
        if number < self._load.warm_up:
            return False
        if self._counting_since_s is None:
            self._counting_since_s, self._cpu_before = time.perf_counter(), self._cpu()
            self._late_ticks_s.clear()
        if self._all_have_begun():
            self._end_if_all_is_counted()
            return False
        self._counted += 1
        self._counted_under_way += 1
        return True

    def _all_have_begun(self) -> bool:
        assert self._counting_since_s is not None, "counting has begun"
        seconds = self._load.seconds
        too_late = seconds is not None and time.perf_counter() > self._counting_since_s + seconds
        return too_late or self._counted >= self._load.requests

    def _end_if_all_is_counted(self) -> None:
        if self._all_have_begun() and not self._counted_under_way:
            self._over.set()

    def _cpu(self) -> tuple[float, CpuTime | None]:
        return time.process_time(), self._server_cpu() if self._server_cpu else None

    def _audio_between(self, since_s: float, until_s: float) -> float:
        """Of all replies, counted or not: the server worked for each of them in this time."""
        samples = sum(
            arrival.samples
            for began_s, heard in self._heard
            for arrival in heard.arrivals
            if since_s <= began_s + arrival.at_s <= until_s
        )
        return samples_to_seconds(samples)

    async def _tick(self) -> None:
        while True:
            due_s = time.perf_counter() + TICK_S
            await asyncio.sleep(TICK_S)
            self._late_ticks_s.append(time.perf_counter() - due_s)


def _played_until_s(heard: Heard) -> float:
    """When a reply would have been heard to its end, after its request began."""
    sound_s = samples_to_seconds(sum(arrival.samples for arrival in heard.arrivals))
    return (heard.first_s or 0.0) + play(heard.arrivals).underrun_s + sound_s


def _spent(before: CpuTime | None, after: CpuTime | None) -> CpuTime | None:
    return None if before is None or after is None else after - before
