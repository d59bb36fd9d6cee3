"""CUDA MPS runs while vLLM and the sidecar do, found by them alone, and ends with them however that comes.

NVIDIA's program is played by one that does as it does: a daemon of its own session that a second call ends.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

Supervise = Callable[..., Any]
Gone = Callable[..., None]

CONTROL = """#!{python}
import json, os, pathlib, signal, socket, sys
notes = pathlib.Path({notes!r})
pipe, log = (pathlib.Path(os.environ[f"CUDA_MPS_{{name}}_DIRECTORY"]) for name in ("PIPE", "LOG"))
if sys.argv[1:] == ["-d"]:
    if (notes / "broken").exists():
        sys.exit("An instance of this daemon is already running")
    (log / "control.log").touch()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(pipe / "control"))
    listener.listen()
    if os.fork():
        os._exit(0)
    os.setsid()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(3):
        os.dup2(null, descriptor)
    (notes / "mps").write_text(str(os.getpid()))
    (notes / "saw").write_text(json.dumps({{"gpus": os.environ.get("CUDA_VISIBLE_DEVICES"), "pipe": str(pipe)}}))
    while listener.accept()[0].makefile().readline() != "quit\\n":
        pass
    clients = [int((notes / name).read_text().split()[0]) for name in ("engine", "sidecar") if (notes / name).exists()]
    (notes / "clients").write_text(" ".join(str(pid) for pid in clients if pathlib.Path(f"/proc/{{pid}}").exists()))
else:
    control = socket.socket(socket.AF_UNIX)
    try:
        control.connect(str(pipe / "control"))
    except OSError:
        sys.exit("Cannot find MPS control daemon process")
    control.sendall(sys.stdin.read().encode())
"""

#: Writes down what it sees of MPS.
ENGINE = """
import json, os, pathlib, sys, time
folder = pathlib.Path(sys.argv[1])
(folder / "engine").write_text(str(os.getpid()))
(folder / "engine_pipe").write_text(os.environ["CUDA_MPS_PIPE_DIRECTORY"])
time.sleep(120)
"""


@pytest.fixture
def path(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment in which NVIDIA's program is found."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "nvidia-cuda-mps-control"
    program.write_text(CONTROL.format(python=sys.executable, notes=str(tmp_path)))
    program.chmod(0o755)
    yield {"PATH": f"{folder}:{os.environ['PATH']}", "CUDA_VISIBLE_DEVICES": "3"}
    daemon = tmp_path / "mps"
    if daemon.exists() and Path(f"/proc/{daemon.read_text()}").exists():  # whatever a failed test left
        os.kill(int(daemon.read_text()), signal.SIGKILL)


def daemon_pid(running: Any) -> int:
    running.child_pids()
    return int((running.folder / "mps").read_text())


def test_it_is_there_before_both_and_ends_after_them(
    supervise: Supervise, gone: Gone, path: dict[str, str], tmp_path: Path
) -> None:
    running = supervise(engine=ENGINE, mps=True, environment=path)
    pid = daemon_pid(running)
    deadline = time.monotonic() + 10
    while not (tmp_path / "engine_pipe").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    saw = json.loads((tmp_path / "saw").read_text())
    assert saw["pipe"] == (tmp_path / "engine_pipe").read_text() == f"{running.run_folder()}/mps"
    assert saw["gpus"] is None, "its clients' numbers of GPUs would be numbers among its own"
    running.process.send_signal(signal.SIGTERM)
    assert running.process.wait(timeout=10) == 0
    gone([pid], within_s=1)
    assert (tmp_path / "clients").read_text() == ""
    assert not running.run_folder().exists()


def test_it_ends_with_a_launcher_that_is_killed(supervise: Supervise, gone: Gone, path: dict[str, str]) -> None:
    running = supervise(mps=True, environment=path)
    pids = [*running.child_pids(), daemon_pid(running)]
    running.process.kill()
    gone(pids, within_s=6)


def test_it_ends_though_somebody_killed_the_guard(supervise: Supervise, gone: Gone, path: dict[str, str]) -> None:
    running = supervise(mps=True, environment=path)
    pid = daemon_pid(running)
    os.kill(running.guard_pid(), signal.SIGKILL)
    running.process.send_signal(signal.SIGTERM)
    assert running.process.wait(timeout=10) == 0
    gone([pid], within_s=1)


def test_mps_that_does_not_start_is_named_and_nothing_else_is_started(
    supervise: Supervise, path: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "broken").touch()
    running = supervise(mps=True, environment=path)
    assert running.process.wait(timeout=10) == 1
    assert "mps ended with exit code 1: An instance of this daemon is already running" in running.lines()
    assert not (tmp_path / "engine").exists()
    assert not (tmp_path / "sidecar").exists()
