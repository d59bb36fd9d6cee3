"""`python -m sidecar`: flags -> Settings -> uvicorn."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import sys
import threading
from collections.abc import Sequence

import uvicorn
from starlette.applications import Starlette

from sidecar.errors import SettingsError, SidecarError
from sidecar.settings import Settings

logger = logging.getLogger("sidecar")

#: After SIGTERM running streams may end for this long, then they are cut off.
GRACE_S = 3.0
#: Then uvicorn cancels what is left, answers passed on from the engine among them.
CANCEL_AFTER_S = 4
#: A client that is there but takes nothing of what was sent, or has vanished without a word, is cut off after this
#: long, which frees its slot. A player that reads no faster than it plays may well pause for a minute first.
STALLED_AFTER_S = 300
#: A thread that computes cannot be interrupted; once the server has ended, the process waits this long for it.
EXIT_AFTER_S = 1.0
#: How long a thread that runs Python may keep the event loop waiting; Python's own default is 5 ms.
THREAD_SWITCH_S = 0.001


class Server(uvicorn.Server):
    """uvicorn, with running streams given their time when the process is asked to end.

    Args:
        failed: set when the server will never be ready, or never again, which ends it.
    """

    def __init__(self, config: uvicorn.Config, failed: threading.Event) -> None:
        super().__init__(config)
        self.failed = failed

    async def on_tick(self, counter: int) -> bool:
        return self.failed.is_set() or await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        app: Starlette = self.config.app  # type: ignore[assignment]
        draining = asyncio.create_task(app.state.services.drain(GRACE_S))
        await super().shutdown(sockets)
        await draining


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until a signal comes. Returns the exit code; exits by itself with one sentence where it cannot begin."""
    try:
        settings = Settings.from_flags(sys.argv[1:] if argv is None else argv)
        refuse_missing(settings)
        listener = bound(settings.host, settings.port)
    except SidecarError as error:
        sys.exit(f"sidecar: {error.message}")
    set_up_logging(settings.log_level)
    sys.setswitchinterval(THREAD_SWITCH_S)
    host, port = listener.getsockname()[:2]
    logger.info("starting on http://%s:%d", f"[{host}]" if ":" in host else host, port)
    server = make_server(settings)
    try:
        server.run(sockets=[listener])
    except KeyboardInterrupt:
        logger.info("interrupted")
    code = int(server.failed.is_set())
    timer = threading.Timer(EXIT_AFTER_S, os._exit, [code])
    timer.daemon = True
    timer.start()
    return code


def set_up_logging(level: str) -> None:
    """`level` is for what is ours: other packages tell much at debug that nobody here asked for."""
    others = max(logging.INFO, logging.getLevelNamesMapping()[level.upper()])
    logging.basicConfig(level=others, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    logging.getLogger("sidecar").setLevel(level.upper())
    # at info, httpx tells of every request to the engine, /health among them
    logging.getLogger("httpx").setLevel(logging.WARNING)


def make_server(settings: Settings) -> Server:
    # imported late: a wrong flag is refused before torch takes its seconds
    from sidecar.app import create_app  # noqa: PLC0415

    failed = threading.Event()
    config = uvicorn.Config(
        create_app(settings, on_failure=failed.set),
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=CANCEL_AFTER_S,
    )
    return Server(config, failed)


def refuse_missing(settings: Settings) -> None:
    """
    Raises:
        SettingsError: there is no checkpoint in --model, or nothing says where the engine is.
    """
    if not (settings.model / "token2wav").is_dir():
        raise SettingsError(f"--model {settings.model} is not a checkpoint: there is no folder token2wav in it")
    if settings.engine.engine_socket is None and settings.engine.engine_url is None:
        raise SettingsError("nothing says where the language model is; give --engine-socket or --engine-url")


def bound(host: str, port: int, *, stalled_after_s: float = STALLED_AFTER_S) -> socket.socket:
    """A socket that has the address. It listens only once the server runs: till then clients are refused at once.

    Args:
        stalled_after_s: when a connection is given up whose client takes nothing.

    Raises:
        SettingsError: the address cannot be had.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, _, _, address = found[0]
        listener = socket.socket(family, kind)
        # the address of a server that has just ended may be had again
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # connections inherit it; the kernel then ends those that stall, which looks like any client that hangs up
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(1000 * stalled_after_s))
        listener.bind(address)
        return listener
    except socket.gaierror as error:
        raise SettingsError(f"--host {host!r} is no address of this machine: {error.strerror}") from error
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise SettingsError(f"port {port} of {host} is taken; stop what listens there, or give --port") from error
        raise SettingsError(f"cannot listen on {host}:{port}: {error.strerror}") from error


if __name__ == "__main__":
    sys.exit(main())
