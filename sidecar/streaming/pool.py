"""Who may come in: a slot for every stream that can run at once."""

from __future__ import annotations

from sidecar.errors import Full


class Slot:
    """The right to run one stream, until it is released; a second release does nothing."""

    def __init__(self, pool: StatePool) -> None:
        self._pool: StatePool | None = pool

    def release(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            pool._free_slots += 1


class StatePool:
    """A fixed number of slots, counted on the event loop alone."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self._free_slots = slots

    @property
    def taken(self) -> int:
        return self.slots - self._free_slots

    def take(self) -> Slot:
        """
        Raises:
            Full: every slot is taken.
        """
        if self._free_slots == 0:
            raise Full(f"all {self.slots} streams are taken; try again in a moment")
        self._free_slots -= 1
        return Slot(self)
