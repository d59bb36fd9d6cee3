"""What a listener hears who plays sound as it comes: seconds in hand at each chunk, gaps, underrun."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from sidecar.timebase import samples_to_seconds


class Arrival(NamedTuple):
    """One read of a reply that had sound in it."""

    at_s: float
    samples: int


@dataclass(frozen=True)
class Playback:
    """A player that starts at the first sound, stands still where it has none, and goes on when the next comes.

    What it stands still in all is also how much too late the latest chunk is for a player that never waits: the worst
    deficit of its buffer, and as much as it should have waited at the start.

    Args:
        in_hand_s: for each chunk but the first, the seconds of sound not played yet when it came; below 0 as long as
            the gap before it.
    """

    in_hand_s: tuple[float, ...]

    @property
    def late_chunks(self) -> int:
        return sum(seconds < 0 for seconds in self.in_hand_s)

    @property
    def underrun_s(self) -> float:
        return sum(-seconds for seconds in self.in_hand_s if seconds < 0)


def play(arrivals: Iterable[Arrival]) -> Playback:
    """Play what came, in order. A reply without sound has no gaps."""
    in_hand_s: list[float] = []
    lasts_until_s: float | None = None
    for at_s, samples in arrivals:
        if lasts_until_s is not None:
            in_hand_s.append(lasts_until_s - at_s)
        lasts_until_s = max(at_s, lasts_until_s or at_s) + samples_to_seconds(samples)
    return Playback(tuple(in_hand_s))
