"""How long the event loop keeps those waiting whose turn it is: everything that every listener gets goes through it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

#: Often enough that most of what blocks the loop for long is met, and a thousandth of a core.
PROBE_INTERVAL_S = 0.02


async def watch_loop_lag(
    observe: Callable[[float], None],
    *,
    interval_s: float = PROBE_INTERVAL_S,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """For as long as nobody cancels it, tell how many seconds too late each of its turns came."""
    while True:
        due_at = clock() + interval_s
        await asyncio.sleep(interval_s)
        observe(max(0.0, clock() - due_at))
