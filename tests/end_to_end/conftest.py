"""One real server for all end-to-end tests: the launcher with `--model tiny`, on real vLLM."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from vllm_server import unused_port

READY_WITHIN_S = 400
STOPPED_WITHIN_S = 10
QUESTION = Path(__file__).parents[2] / "examples" / "question.wav"


@dataclass(frozen=True)
class RunningServer:
    """A launcher whose server is ready; `folder` holds its log and its run folder."""

    url: str
    launcher: subprocess.Popen[bytes]
    folder: Path

    @property
    def log(self) -> str:
        return (self.folder / "launcher.log").read_text(errors="replace")

    @property
    def engine_socket(self) -> Path:
        (socket,) = self.folder.glob("vox-serve-*/vllm.sock")
        return socket

    def processes(self) -> list[int]:
        """Every process below the launcher now: the guard, the sidecar, vLLM's server and what that started."""
        parents = running_processes()
        found = [self.launcher.pid]
        for parent in found:
            found += [pid for pid, parent_pid in parents.items() if parent_pid == parent]
        return found[1:]


def running_processes() -> dict[int, int]:
    """Process id -> its parent's, of all that are not zombies."""
    found = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = status.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if state not in "ZX":
            found[int(status.parent.name)] = int(parent)
    return found


@contextmanager
def launched(folder: Path, port: int, *flags: str) -> Iterator[RunningServer]:
    """Start the launcher and wait until it is ready; stops it at the end if nobody has."""
    command = [sys.executable, "-m", "vox_serve.launch", "--model", "tiny", "--port", str(port), *flags]
    with (folder / "launcher.log").open("wb") as log:
        launcher = subprocess.Popen(
            command, stderr=log, env={**os.environ, "TMPDIR": str(folder)}, start_new_session=True
        )
    server = RunningServer(f"http://127.0.0.1:{port}", launcher, folder)
    try:
        wait_until_ready(server)
        yield server
    finally:
        if launcher.poll() is None:
            launcher.send_signal(signal.SIGTERM)
            try:
                launcher.wait(timeout=STOPPED_WITHIN_S + 5)
            except subprocess.TimeoutExpired:
                launcher.kill()  # its guard ends the rest


def wait_until_ready(server: RunningServer) -> None:
    deadline_s = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < deadline_s:
        assert server.launcher.poll() is None, f"the launcher ended:\n{server.log[-6000:]}"
        if "[launcher] ready after" in server.log:
            return
        time.sleep(0.5)
    raise AssertionError(f"not ready within {READY_WITHIN_S} s:\n{server.log[-6000:]}")


def left_after(pids: list[int], seconds: float) -> list[int]:
    """Those of the processes that are still there after this time."""
    deadline_s = time.monotonic() + seconds
    while (left := sorted(running_processes().keys() & set(pids))) and time.monotonic() < deadline_s:
        time.sleep(0.1)
    return left


@pytest.fixture(scope="session")
def launch() -> Callable[..., object]:
    """Starts another server: `with launch(folder, port, *flags) as server`."""
    return launched


@pytest.fixture(scope="session")
def what_is_left() -> Callable[[list[int], float], list[int]]:
    return left_after


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """The server that all tests share; when they are done, it must go without leaving anything."""
    folder = short_folder(tmp_path_factory)
    with launched(folder, unused_port()) as running:
        yield running
        pids = running.processes()
        assert len(pids) >= 4, "the guard, the sidecar, vLLM's server and its engine"
        asked_s = time.monotonic()
        running.launcher.send_signal(signal.SIGTERM)
        assert running.launcher.wait(timeout=STOPPED_WITHIN_S) == 0, running.log[-3000:]
        assert left_after(pids, asked_s + STOPPED_WITHIN_S - time.monotonic()) == []
        assert [left.name for left in folder.iterdir()] == ["launcher.log"]


@pytest.fixture
def client(server: RunningServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=180) as opened:
        yield opened


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    """A folder with the recordings that the documents' requests name."""
    for name in ("input.wav", "question.wav"):
        shutil.copy(QUESTION, tmp_path / name)
    return tmp_path


def short_folder(factory: pytest.TempPathFactory) -> Path:
    """A folder whose path is short enough for a unix socket in it."""
    folder = factory.mktemp("run")
    assert len(str(folder)) <= 50, f"{folder} is too long a path for a unix socket; set TMPDIR to a shorter one"
    return folder
