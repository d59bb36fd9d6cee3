"""One child process: started in a process group of its own, its lines passed on with its name in front."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import IO

from vox_serve.command import Command
from vox_serve.guard import Guard, group_lives, signal_group

LAST_LINES = 15
#: What moves the cursor or clears: several bars at once jump between their lines, ours stand one below the other.
CURSOR_MOVES = re.compile(rb"\x1b\[[0-9;]*[A-HJK]")


class Child:
    """A started command.

    Args:
        command: what to run.
        guard: learns of its process group, so that it never outlives the launcher.
        say: gets each line of its output, prefixed.
        keep_stdout: keep standard output apart from the log and hand it over by `output()`.
    """

    def __init__(
        self, command: Command, *, guard: Guard, say: Callable[[str], None], keep_stdout: bool = False
    ) -> None:
        self.name = command.name
        self.last_lines: deque[str] = deque(maxlen=LAST_LINES)
        self.phase = command.first_phase
        self._landmarks = command.landmarks
        self._say = say
        self._guard = guard
        self._process = subprocess.Popen(
            guard.entering(command.argv),
            env={**os.environ, **command.environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if keep_stdout else subprocess.STDOUT,
            # a group, not a session: Linux shares a CPU out by session (autogroup), so on few cores vLLM's spinning
            # held up the sidecar's event loop; measured on 2 cores, TTFA 0.91 s with two sessions, 0.15 s with one
            process_group=0,
            pass_fds=(guard.pipe,),
        )
        log = self._process.stderr if keep_stdout else self._process.stdout
        assert log is not None, "the child is started with pipes"
        self._kept = self._process.stdout if keep_stdout else None
        self._reader = threading.Thread(target=self._pass_on, args=(log,), daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """Of the process, and of its group."""
        return self._process.pid

    def exit_code(self) -> int | None:
        """None while it runs; negative for the signal that ended it."""
        return self._process.poll()

    def output(self) -> str:
        """What it wrote to standard output; only for one that has ended and was started with `keep_stdout`."""
        assert self._kept is not None, "this child's output went to the log"
        return self._kept.read().decode(errors="replace")

    def finish_log(self) -> None:
        """Wait a moment for its last lines, which may still be in the pipe when it has ended."""
        self._reader.join(timeout=1)

    def ask_to_stop(self) -> None:
        """SIGTERM to the process itself: it ends its own children in the order it knows."""
        if self.exit_code() is None:
            self._process.send_signal(signal.SIGTERM)

    def is_gone(self) -> bool:
        """Whether nothing of it is left, grandchildren included."""
        if self.exit_code() is None or group_lives(self.pid):
            return False
        self._guard.forget(self.pid)
        return True

    def kill(self) -> None:
        """SIGKILL to it and its grandchildren, now."""
        signal_group(self.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=1)
        self._guard.forget(self.pid)

    def _pass_on(self, log: IO[bytes]) -> None:
        for line in _lines(log):
            self.last_lines.append(line)
            self.phase = next((phase for mark, phase in self._landmarks if mark in line), self.phase)
            self._say(f"[{self.name}] {line}")


def _lines(log: IO[bytes]) -> Iterator[str]:
    """Lines as they come, without the empty ones; a progress bar's carriage returns end a line too."""
    pending = b""
    while arrived := os.read(log.fileno(), 65536):
        *whole, pending = re.split(rb"[\r\n]", pending + arrived)
        yield from filter(None, map(_text, whole))
    if pending:
        yield _text(pending)


def _text(line: bytes) -> str:
    return CURSOR_MOVES.sub(b"", line).decode(errors="replace").rstrip()
