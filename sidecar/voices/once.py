"""Work that several callers wait for is done once, and goes on when they go away."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Generic, TypeVar

from sidecar.errors import NotReady

Made = TypeVar("Made")


class Once(Generic[Made]):
    """Nothing is remembered: what came of it, good or bad, goes to those who waited; the next caller starts anew."""

    def __init__(self) -> None:
        self._running: dict[str, asyncio.Task[Made]] = {}

    async def do(self, key: str, make: Callable[[], Coroutine[Any, Any, Made]]) -> Made:
        """What `make` gives; of callers with one key at one time, only the first one's `make` is called.

        Raises:
            NotReady: cancelled by `cancel`.
        """
        task = self._running.get(key)
        if task is None:
            task = self._running[key] = asyncio.create_task(make())
            task.add_done_callback(partial(self._end, key))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():
                raise NotReady("the server is shutting down") from None
            raise

    def cancel(self) -> None:
        """Nobody is to wait any longer."""
        for task in self._running.values():
            task.cancel()

    def _end(self, key: str, task: asyncio.Task[Made]) -> None:
        del self._running[key]
        if not task.cancelled():
            task.exception()  # looked at, or asyncio would log it where all who waited have gone
