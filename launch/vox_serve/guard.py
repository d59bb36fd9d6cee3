"""Leaves nothing behind: a small process that outlives the launcher, even when that is killed with -9.

It runs in a session of its own and reads lines from a pipe whose writing end the launcher holds:

    watch PGID      a process group that must not survive the launcher
    forget PGID     it has ended
    folder PATH     a folder that must not survive either
    run JSON        [argv, environment] of a command that ends what is in no such group

However the launcher ends, the system closes its end of the pipe. The guard then gives every group that is left
SIGTERM, some seconds, and SIGKILL, runs the commands and removes the folders.

`guard.py enter FD COMMAND...` is the other half: it announces its own process group on the pipe and becomes COMMAND,
so that there is no moment in which a child runs that the guard does not know of.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

POLL_S = 0.05
#: What a command of the end may take.
COMMAND_S = 5.0


def group_lives(pgid: int) -> bool:
    """Whether any process of this group is left (a zombie that nobody has reaped counts)."""
    try:
        os.killpg(pgid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # macOS says so of a group of zombies
        return False
    return True


def signal_group(pgid: int, number: int) -> None:
    """Signal every process of a group, if there is one."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pgid, number)


def end_groups(pgids: Iterable[int], *, grace_s: float) -> None:
    """SIGTERM to every group, then at most `grace_s` for all of them together, then SIGKILL to what is left."""
    left = set(pgids)
    for pgid in left:
        signal_group(pgid, signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    while (left := {pgid for pgid in left if group_lives(pgid)}) and time.monotonic() < deadline:
        time.sleep(POLL_S)
    for pgid in left:
        signal_group(pgid, signal.SIGKILL)


def keep_watch(lines: Iterable[bytes], *, grace_s: float) -> None:
    """Read until the launcher's end closes, then end and remove all that was named and not forgotten."""
    groups: set[int] = set()
    folders: list[Path] = []
    commands: list[str] = []
    for line in lines:
        word, _, rest = line.decode().rstrip("\n").partition(" ")
        if word == "watch":
            groups.add(int(rest))
        elif word == "forget":
            groups.discard(int(rest))
        elif word == "folder":
            folders.append(Path(rest))
        elif word == "run":
            commands.append(rest)
    end_groups(groups, grace_s=grace_s)
    for command in commands:
        run_quietly(*json.loads(command))
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def run_quietly(argv: Sequence[str], environment: Mapping[str, str]) -> None:
    """Run a command to its end, however it ends, and no longer than COMMAND_S."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        subprocess.run(
            argv,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=COMMAND_S,
            check=False,
        )


def enter(pipe: int, command: list[str]) -> None:
    """Announce this process's group on the pipe and become the command."""
    os.set_inheritable(pipe, False)
    os.write(pipe, b"watch %d\n" % os.getpgrp())
    os.execvp(command[0], command)


class Guard:
    """The launcher's end of it.

    Args:
        grace_s: how long the groups get between SIGTERM and SIGKILL once the launcher is gone.
    """

    def __init__(self, *, grace_s: float) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", __file__, "watch", str(grace_s)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        assert self._process.stdin is not None, "the guard is started with a pipe"
        self._pipe = self._process.stdin
        self._folders: list[Path] = []
        self._commands: list[tuple[Sequence[str], Mapping[str, str]]] = []

    @property
    def pipe(self) -> int:
        """The file descriptor that `entering` needs: hand it on with `pass_fds`."""
        return self._pipe.fileno()

    def entering(self, command: Sequence[str]) -> list[str]:
        """The same command, known to the guard from its first moment. Start it in a process group of its own."""
        return [sys.executable, "-I", __file__, "enter", str(self.pipe), *command]

    def forget(self, pgid: int) -> None:
        self._tell(f"forget {pgid}")

    def remove_at_the_end(self, folder: Path) -> None:
        self._folders.append(folder)
        self._tell(f"folder {folder}")

    def run_at_the_end(self, argv: Sequence[str], environment: Mapping[str, str]) -> None:
        """A command for when all groups are gone, in the launcher's environment with this added."""
        self._commands.append((argv, environment))
        self._tell(f"run {json.dumps([argv, dict(environment)])}")

    def close(self) -> None:
        """Let it end what is left, run the commands, remove the folders and go."""
        with contextlib.suppress(OSError):
            self._pipe.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=2 + COMMAND_S * len(self._commands))
        if self._process.poll() != 0:  # somebody killed it
            for argv, environment in self._commands:
                run_quietly(argv, environment)
        for folder in self._folders:
            shutil.rmtree(folder, ignore_errors=True)

    def _tell(self, line: str) -> None:
        with contextlib.suppress(OSError):  # a guard that somebody killed must not take the speakers with it
            os.write(self.pipe, line.encode() + b"\n")


def main(arguments: Sequence[str]) -> None:
    match arguments:
        case ["watch", grace_s]:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)
            keep_watch(sys.stdin.buffer, grace_s=float(grace_s))
        case ["enter", pipe, *command]:
            enter(int(pipe), command)


if __name__ == "__main__":
    main(sys.argv[1:])
