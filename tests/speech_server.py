"""The sidecar behind a real uvicorn on a real socket, in a thread of the test's process."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import requests
import uvicorn

from sidecar.__main__ import CANCEL_AFTER_S, STALLED_AFTER_S, Server, bound
from sidecar.api.services import Services
from sidecar.app import create_app
from sidecar.engine.scripted import ScriptedEngine
from sidecar.settings import Settings


@dataclass
class SpeechServer:
    """A server that is up; `stop` ends it as a signal would."""

    url: str
    port: int
    services: Services
    engine: ScriptedEngine
    server: Server
    thread: threading.Thread

    def generate(self, **fields: Any) -> requests.Response:
        return requests.post(f"{self.url}/generate", json={"text": "Hello", **fields}, timeout=60)

    def stream(self, **fields: Any) -> requests.Response:
        wanted = {"text": "Hello", "streaming": True, **fields}
        return requests.post(f"{self.url}/generate", json=wanted, stream=True, timeout=60)

    def connect(self, body: bytes) -> socket.socket:
        """A connection on which a request has been sent and nothing has been read."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=30)
        self.ask(connection, body)
        return connection

    def ask(self, connection: socket.socket, body: bytes) -> None:
        head = f"POST /generate HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        connection.sendall(f"{head}\r\n\r\n".encode() + body)

    @property
    def streams_running(self) -> int:
        metrics = self.services.metrics.render()
        return next(int(line.split()[1]) for line in metrics.splitlines() if line.startswith("sidecar_streams_running"))

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(20)
        assert not self.thread.is_alive(), "the server does not end"


@contextmanager
def speech_server(
    settings: Settings,
    engine: ScriptedEngine,
    *,
    until_ready: bool = True,
    stalled_after_s: float = STALLED_AFTER_S,
    **parts: Any,
) -> Iterator[SpeechServer]:
    """Serve on a free port of loopback, with these parts handed in."""
    failed = threading.Event()
    app = create_app(settings, engine=engine, on_failure=failed.set, **parts)
    config = uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=CANCEL_AFTER_S)
    server = Server(config, failed)
    listener = bound("127.0.0.1", 0, stalled_after_s=stalled_after_s)
    port = listener.getsockname()[1]
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    wait_until(lambda: server.started, within_s=30)
    running = SpeechServer(f"http://127.0.0.1:{port}", port, app.state.services, engine, server, thread)
    try:
        if until_ready:
            wait_until(lambda: failed.is_set() or requests.get(f"{running.url}/ready", timeout=5).ok, within_s=120)
            assert not failed.is_set(), "the server cannot start; its log says why"
        yield running
    finally:
        running.stop()


def wait_until(condition: Callable[[], bool], *, within_s: float) -> float:
    """Seconds until it was true."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < within_s, "what was waited for has not come"
        time.sleep(0.01)
    return time.monotonic() - started
