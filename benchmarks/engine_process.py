"""A vLLM server as a child process, and how long it took to be ready."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx


@dataclass(frozen=True)
class Engine:
    """A server that answered /health."""

    url: str  # without /v1
    model: str
    ready_after_s: float


class EngineFailed(Exception):
    """The server ended, or was not ready in time; carries the end of its log."""


@contextmanager
def serving(model: Path, flags: Sequence[str], log: Path, ready_within_s: float = 900) -> Iterator[Engine]:
    """Start vLLM's OpenAI server on a checkpoint folder, wait until it is ready, and stop it at the end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    begun = time.monotonic()
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port), *flags],
            stdout=sink, stderr=subprocess.STDOUT, process_group=0,
        )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    try:
        while not _healthy(url):
            if process.poll() is not None or time.monotonic() > begun + ready_within_s:
                tail = "\n".join(log.read_text(errors="replace").splitlines()[-60:])
                raise EngineFailed(f"vLLM is not ready (exit status {process.poll()}), see {log}:\n{tail}")
            time.sleep(0.25)
        yield Engine(url, str(model), time.monotonic() - begun)
    finally:
        _stop(process)


def _healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(15)
    # the engine outlives its server otherwise
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(15)
