"""A supervisor at work on children that take no minutes to start: real processes, signals and groups."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

RUNNER = Path(__file__).with_name("run_plan.py")

#: Ignores SIGTERM where told to, has a child of its own, and writes down both process ids.
ENGINE = """
import os, pathlib, signal, subprocess, sys, time
folder, stubborn = pathlib.Path(sys.argv[1]), sys.argv[2] == "stubborn"
if stubborn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
grandchild = subprocess.Popen([sys.executable, "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(120)"])
(folder / "engine").write_text(f"{os.getpid()} {grandchild.pid}")
print("engine is loading", flush=True)
time.sleep(1.5)
print("engine is serving", flush=True)
time.sleep(120)
"""

#: Answers 503 with what is missing until the file `go` exists, then 200; a voice is missing until `loaded` exists.
SIDECAR = """
import http.server, json, os, pathlib, sys
folder, port = pathlib.Path(sys.argv[1]), int(sys.argv[2])
class Ready(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        ready = (folder / "go").exists()
        own = [] if (folder / "loaded").exists() else ["voice"]
        words = "a voice is missing" if own else "the engine is missing"
        missing = {"error": {"message": words}, "missing": [*own, "engine", "warm-up"]}
        body = b"{}" if ready else json.dumps(missing).encode()
        self.send_response(200 if ready else 503)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Process-Id", str(os.getpid()))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *words):
        pass
(folder / "sidecar").write_text(str(os.getpid()))
http.server.HTTPServer(("127.0.0.1", port), Ready).serve_forever()
"""


@dataclass
class Supervised:
    """A launcher's supervisor in a process of its own."""

    process: subprocess.Popen[str]
    folder: Path

    def lines(self) -> str:
        return (self.folder / "said.log").read_text()

    def wait_for_line(self, words: str) -> None:
        wait_until(lambda: words in self.lines(), f"a line with {words!r}; it said:\n{self.lines()}")

    def child_pids(self) -> list[int]:
        """The engine, its grandchild and the sidecar."""
        written = [self.folder / "engine", self.folder / "sidecar"]
        wait_until(lambda: all(file.exists() and file.read_text() for file in written), "both to start")
        return [int(pid) for file in written for pid in file.read_text().split()]

    def guard_pid(self) -> int:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        (guard,) = [pid for pid in children if b"guard.py\0watch" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        return int(guard)

    def run_folder(self) -> Path:
        return Path((self.folder / "run_folder").read_text())


def heed_hang_ups() -> None:
    """These tests themselves may run under nohup, which its children inherit."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def wait_until(true: Callable[[], bool], what: str, *, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state not in "ZX"


@pytest.fixture
def gone() -> Callable[..., None]:
    """Asserts that processes are gone, within some seconds."""

    def all_gone(pids: list[int], *, within_s: float) -> None:
        wait_until(lambda: not any(map(is_running, pids)), f"{pids} to end", seconds=within_s)

    return all_gone


@pytest.fixture
def supervise(tmp_path: Path, free_port: int) -> Iterator[Callable[..., Supervised]]:
    """Starts a supervisor; `engine` and `sidecar` are Python programs that get the test's folder."""
    started: list[Supervised] = []

    def start(
        *, engine: str = ENGINE, sidecar: str = SIDECAR, stubborn: bool = False, grace_s: float = 1.0,
        prepare: list[list[str]] | None = None, under: Sequence[str] = (), sidecar_first: bool = False,
        mps: bool = False, notes: Sequence[str] = (), environment: Mapping[str, str] | None = None,
    ) -> Supervised:  # fmt: skip
        plan = {
            "engine": [sys.executable, "-c", engine, str(tmp_path), "stubborn" if stubborn else "polite"],
            "sidecar": [sys.executable, "-c", sidecar, str(tmp_path), str(free_port)],
            "prepare": prepare or [],
            "url": f"http://127.0.0.1:{free_port}",
            "grace_s": grace_s,
            "sidecar_first": sidecar_first,
            "mps": mps,
            "notes": list(notes),
            "folder": str(tmp_path),
        }
        with (tmp_path / "said.log").open("w") as log:
            process = subprocess.Popen(
                [*under, sys.executable, str(RUNNER), json.dumps(plan)], stderr=log, text=True, start_new_session=True,
                env={**os.environ, **(environment or {})},
                preexec_fn=heed_hang_ups,  # noqa: PLW1509  no thread runs here yet
            )  # fmt: skip
        started.append(Supervised(process, tmp_path))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.process.send_signal(signal.SIGTERM)
            one.process.wait(timeout=15)
        for file in ("engine", "sidecar"):  # whatever a failed test left
            for pid in (tmp_path / file).read_text().split() if (tmp_path / file).exists() else []:
                if is_running(int(pid)):
                    os.kill(int(pid), signal.SIGKILL)
