"""A real vLLM OpenAI server as a child process: started on a free port, waited for, and taken down whole."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
from vllm_environment import VLLM_ENVIRONMENT

#: Small enough for a laptop; the tiny checkpoints need no more.
ARGUMENTS = (
    "--enforce-eager",
    "--max-model-len", "2048",
    "--max-num-seqs", "8",
    "--kv-cache-memory-bytes", "67108864",
)  # fmt: skip


@dataclass(frozen=True)
class VllmServer:
    """A server that answered /health once."""

    base_url: str  # without /v1
    model: str
    process: subprocess.Popen[bytes]
    log: Path

    def chat(self, body: dict[str, object], timeout_s: float = 300) -> httpx.Response:
        """POST /v1/chat/completions with the model's name filled in."""
        return httpx.post(f"{self.base_url}/v1/chat/completions", json={"model": self.model, **body}, timeout=timeout_s)


def unused_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def serving(
    model_dir: Path, *extra: str, arguments: Sequence[str] = ARGUMENTS, ready_within_s: float = 400
) -> Iterator[VllmServer]:
    """Start `python -m vllm.entrypoints.openai.api_server` on a checkpoint folder and stop it at the end.

    `extra` is appended to `arguments`, so that a flag given twice takes the caller's value.

    Raises:
        RuntimeError: the server ended or was not healthy in time; carries the end of its log.
    """
    port = unused_port()
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model_dir),
               "--host", "127.0.0.1", "--port", str(port), *arguments, *extra]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "vllm.txt"
        with log.open("wb") as sink:
            process = subprocess.Popen(
                # a group, not a session, in which its spinning engine would hold up its own server (see child.py)
                command, stdout=sink, stderr=subprocess.STDOUT, process_group=0,
                env={**os.environ, **VLLM_ENVIRONMENT},
            )  # fmt: skip
        server = VllmServer(f"http://127.0.0.1:{port}", str(model_dir), process, log)
        try:
            wait_until_healthy(server, ready_within_s)
            yield server
        finally:
            stop(process)


def wait_until_healthy(server: VllmServer, within_s: float) -> None:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline and server.process.poll() is None:
        try:
            if httpx.get(f"{server.base_url}/health", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    tail = "\n".join(server.log.read_text(errors="replace").splitlines()[-300:])
    raise RuntimeError(f"vLLM was not ready (exit status {server.process.poll()}):\n{tail}")


def stop(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM, a while, then SIGKILL to the whole group: killing the parent alone leaves the engine running."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(10)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(10)
