"""Work that several callers wait for is done once, and goes on when they go away."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

Made = TypeVar("Made")


class Once(Generic[Made]):
    """Nothing is remembered: what came of it, good or bad, goes to those who waited; the next caller starts anew."""

    def __init__(self) -> None:
        self._running: dict[str, asyncio.Task[Made]] = {}

    async def do(self, key: str, make: Callable[[], Coroutine[Any, Any, Made]]) -> Made:
        """What `make` gives; of callers with one key at one time, only the first one's `make` is called."""
        task = self._running.get(key)
        if task is None:
            task = self._running[key] = asyncio.create_task(self._make(key, make))
            task.add_done_callback(_take_note)
        return await asyncio.shield(task)

    async def _make(self, key: str, make: Callable[[], Coroutine[Any, Any, Made]]) -> Made:
        try:
            return await make()
        finally:
            del self._running[key]


def _take_note(task: asyncio.Task[Any]) -> None:
    """Where all who waited have gone, asyncio would log what went wrong, with a traceback: nobody has looked at it."""
    if not task.cancelled():
        task.exception()
