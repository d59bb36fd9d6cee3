"""Carries a plan out: prepare, start both in order, say what is waited for, and stop both together whatever happens."""

from __future__ import annotations

import math
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import NoReturn

from vox_serve.child import Child
from vox_serve.command import RUN_FOLDER, Command
from vox_serve.guard import Guard
from vox_serve.mps import Daemon
from vox_serve.plan import Plan
from vox_serve.readiness import Readiness, readiness

POLL_S = 0.1
READY_POLL_TICKS = 4
#: How often the same wait is said again, so that nobody wonders whether it hangs.
REPEAT_S = 10.0
#: What both get between SIGTERM and SIGKILL.
GRACE_S = 6.0
#: What sends a signal to a process and to its group, as `timeout` and `make` do, means it once.
SAME_STOP_S = 0.2
#: A unix socket's path may have 107 bytes, and vLLM's sockets in this folder have names of 36.
MAX_RUN_FOLDER_BYTES = 70


class StopAsked(Exception):
    """Ctrl-C or SIGTERM."""


class ChildEnded(Exception):
    """A child has ended that should not have, or failed."""

    def __init__(self, child: Child) -> None:
        super().__init__(child.name)
        self.child = child


class Supervisor:
    """Runs one plan once.

    Args:
        say: gets every line that is for the user.
        grace_s: what both children get between SIGTERM and SIGKILL.
    """

    def __init__(self, *, say: Callable[[str], None], grace_s: float = GRACE_S) -> None:
        self._say = say
        self._grace_s = grace_s
        self._children: list[Child] = []
        self._stops_asked_s: list[float] = []
        self._started_s = time.monotonic()
        self._said: tuple[str, float] = ("", 0.0)

    def run(self, plan: Plan) -> int:
        """Returns the exit code: 0 after a stop that was asked for, 1 after a child's end."""
        with self._signals():
            guard = Guard(grace_s=self._grace_s)
            try:
                self._serve(plan, guard)
            except StopAsked:
                self._say("[launcher] stopping; once more kills at once")
                return 0
            except ChildEnded as ended:
                self._say(_obituary(ended.child))
                return 1
            finally:
                self._stop_all()
                guard.close()
                self._say("[launcher] stopped")

    def _serve(self, plan: Plan, guard: Guard) -> NoReturn:
        for note in plan.notes:
            self._say(f"[launcher] {note}")
        model_folder = self._prepare(plan, guard)
        run_folder = make_run_folder()
        guard.remove_at_the_end(run_folder)
        if plan.daemon is not None:
            self._start_daemon(plan.daemon, run_folder, guard)
        engine, sidecar = plan.services(model_folder=model_folder, run_folder=str(run_folder))
        self._start_both(engine, sidecar, plan, guard)
        self._say(_ready_line(plan, time.monotonic() - self._started_s))
        while True:
            self._tick()

    def _prepare(self, plan: Plan, guard: Guard) -> str:
        """Run what comes first, one after the other; returns the model's folder."""
        folder = plan.model_folder
        for command in plan.prepare:
            child = self._run(command, guard, keep_stdout=folder is None)
            if folder is None:
                folder = child.output().strip().splitlines()[-1]
        assert folder is not None, "a plan without a folder ends its preparation with one that prints it"
        return folder

    def _start_daemon(self, daemon: Daemon, run_folder: Path, guard: Guard) -> None:
        folders = {RUN_FOLDER: str(run_folder)}
        end = daemon.end.with_folders(folders)
        guard.run_at_the_end(end.argv, end.environment)  # first: there is no moment in which nobody would end it
        self._run(daemon.start.with_folders(folders), guard)

    def _run(self, command: Command, guard: Guard, *, keep_stdout: bool = False) -> Child:
        """Start a command that ends by itself, and wait until it has."""
        child = self._start(command, guard, keep_stdout=keep_stdout)
        while child.exit_code() is None:
            self._check_stop()
            self._show_wait(command.first_phase)
            time.sleep(POLL_S)
        if child.exit_code() != 0:
            raise ChildEnded(child)
        child.is_gone()
        self._children.remove(child)
        return child

    def _start_both(self, engine: Command, sidecar: Command, plan: Plan, guard: Guard) -> None:
        """Returns when both are ready."""
        if plan.sidecar_first:
            running_sidecar = self._start(sidecar, guard)
            self._wait_for(plan.ready_url, running_sidecar, lambda now: now.misses_only_the_engine)
            running_engine = self._start(engine, guard)
        else:
            running_engine, running_sidecar = self._start(engine, guard), self._start(sidecar, guard)
        self._wait_for(plan.ready_url, running_sidecar, lambda now: now.ready, busy=lambda: running_engine.phase)

    def _start(self, command: Command, guard: Guard, *, keep_stdout: bool = False) -> Child:
        child = Child(command, guard=guard, say=self._say, keep_stdout=keep_stdout)
        self._children.append(child)
        return child

    def _wait_for(
        self, url: str, sidecar: Child, reached: Callable[[Readiness], bool], *, busy: Callable[[], str] = lambda: ""
    ) -> None:
        """Wait until what the sidecar answers is what was waited for; `busy`, where not empty, is said instead."""
        while not reached(now := readiness(url, sidecar.pid)):
            self._show_wait(busy() or now.missing or sidecar.phase)
            for _ in range(READY_POLL_TICKS):
                self._tick()

    def _tick(self) -> None:
        self._check_stop()
        for child in self._children:
            if child.exit_code() is not None:
                raise ChildEnded(child)
        time.sleep(POLL_S)

    def _check_stop(self) -> None:
        if self._stops_asked_s:
            raise StopAsked

    def _show_wait(self, wait: str) -> None:
        now = time.monotonic()
        words, said_s = self._said
        if wait and (wait != words or now - said_s >= REPEAT_S):
            self._said = (wait, now)
            self._say(f"[launcher] {now - self._started_s:3.0f} s, waiting: {wait}")

    def _stop_all(self) -> None:
        """SIGTERM to each, `grace_s` for all of them together, then SIGKILL to their groups."""
        for child in self._children:
            child.ask_to_stop()
        deadline_s = time.monotonic() + self._grace_s
        left = [child for child in self._children if not child.is_gone()]
        while left and time.monotonic() < deadline_s and self._stops_asked() < 2:
            time.sleep(POLL_S / 2)
            left = [child for child in left if not child.is_gone()]
        for child in left:
            child.kill()

    def _stops_asked(self) -> int:
        """How often somebody meant it."""
        asked_s = sorted(self._stops_asked_s)
        return sum(after - before >= SAME_STOP_S for before, after in pairwise([-math.inf, *asked_s]))

    @contextmanager
    def _signals(self) -> Iterator[None]:
        def note(_number: int, _frame: FrameType | None) -> None:
            # a handler can be interrupted by another: appending cannot lose one, counting up could
            self._stops_asked_s.append(time.monotonic())

        numbers = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # that is how nohup says: stay when I log out
            numbers.append(signal.SIGHUP)
        before = {number: signal.signal(number, note) for number in numbers}
        try:
            yield
        finally:
            for number, previous in before.items():
                signal.signal(number, previous)


def make_run_folder() -> Path:
    """A new folder that only this user can open, short enough for a socket's path."""
    folder = Path(tempfile.gettempdir())
    usable = folder if len(os.fsencode(folder)) <= MAX_RUN_FOLDER_BYTES - len("/vox-serve-12345678") else Path("/tmp")
    return Path(tempfile.mkdtemp(prefix="vox-serve-", dir=usable))


def _ready_line(plan: Plan, elapsed_s: float) -> str:
    return (
        f"[launcher] ready after {elapsed_s:.0f} s at {plan.url} - try: curl {plan.url}/generate "
        """-H 'Content-Type: application/json' -d '{"text": "Hello!"}' -o hello.wav"""
    )


def _obituary(child: Child) -> str:
    child.finish_log()
    code = child.exit_code() or 0
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    if len(child.last_lines) == 1:
        return f"[launcher] {child.name} {how}: {child.last_lines[0]}"
    lines = "\n".join(f"[launcher]   {line}" for line in child.last_lines)
    return f"[launcher] {child.name} {how}; stopping. Its last lines:\n{lines}"
