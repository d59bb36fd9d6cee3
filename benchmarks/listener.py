"""One request over a connection of its own, and when each piece of its reply came.

Bare asyncio streams: at 128 replies, each some times faster than it is played, an HTTP library would be what is
measured.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from http import HTTPStatus
from json import JSONDecodeError, loads
from time import perf_counter
from urllib.parse import urlsplit

from heard import Heard

#: A server writes a chunk of sound at once, some tens of kilobytes; asyncio's own 64 KiB would stop and go.
READ_AHEAD_BYTES = 1 << 20


@dataclass(frozen=True)
class Ask:
    """A request that is ready to be sent, and what its reply's bytes will be read as."""

    path: str
    content_type: str
    body: bytes
    heard: Callable[[], Heard]


@dataclass(frozen=True)
class Server:
    """Where to ask; plain HTTP/1.1."""

    host: str
    port: int

    @classmethod
    def from_url(cls, url: str) -> Server:
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname or parts.path.strip("/"):
            raise ValueError(f"{url} is not http://HOST:PORT; give the server's address without a path")
        return cls(parts.hostname, parts.port or 80)


class Failed(Exception):
    """The reply is not what was asked for; the message is its kind, so that equal ones can be counted."""


async def listen(server: Server, ask: Ask, heard: Heard, *, timeout_s: float) -> None:
    """Ask and hear the reply to its end; `heard` takes what comes, timed from before the connection is made.

    Raises:
        Failed: refused, cut short, too late, without a sound or a word, or nobody was there.
    """
    began_s = perf_counter()
    try:
        async with asyncio.timeout(timeout_s):
            async for piece in _exchange(server, ask):
                heard.take(perf_counter() - began_s, piece)
    except TimeoutError as error:
        raise Failed(f"not over within {timeout_s:g} s") from error
    except (asyncio.IncompleteReadError, ConnectionResetError, BrokenPipeError) as error:
        raise Failed("cut short") from error
    except OSError as error:
        raise Failed(f"no connection: {error.strerror or error}") from error
    if heard.first_s is None:
        raise Failed("nothing was said")


async def _exchange(server: Server, ask: Ask) -> AsyncIterator[bytes]:
    """The pieces of the reply's body, as the server has written them where it is chunked."""
    reader, writer = await asyncio.open_connection(server.host, server.port, limit=READ_AHEAD_BYTES)
    try:
        head = f"POST {ask.path} HTTP/1.1\r\nHost: {server.host}:{server.port}\r\nConnection: close\r\n"
        head += f"Content-Type: {ask.content_type}\r\nContent-Length: {len(ask.body)}\r\n\r\n"
        writer.write(head.encode() + ask.body)
        status, headers = await _head(reader)
        if status != HTTPStatus.OK:
            raise Failed(f"{status} {_code(await reader.read())}".strip())
        if headers.get("transfer-encoding", "").lower() == "chunked":
            pieces = _chunks(reader)
        else:
            pieces = _until(reader, int(headers.get("content-length", 0)))
        async for piece in pieces:
            yield piece
    finally:
        writer.close()


async def _head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    """The reply's status, and its headers by their names in small letters."""
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    named = (line.partition(":") for line in lines)
    return int(first.split()[1]), {name.lower(): value.strip() for name, _, value in named}


async def _chunks(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while size := int(await reader.readuntil(b"\r\n"), 16):
        yield (await reader.readexactly(size + 2))[:size]


async def _until(reader: asyncio.StreamReader, size: int) -> AsyncIterator[bytes]:
    while size:
        piece = await reader.read(READ_AHEAD_BYTES)
        if not piece:
            raise asyncio.IncompleteReadError(b"", size)
        size -= len(piece)
        yield piece


def _code(body: bytes) -> str:
    """The short name in an error's body, or what kind of error it is."""
    try:
        error = loads(body)["error"]
        return str(error["code"] or error["type"])
    except (JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
        return ""
