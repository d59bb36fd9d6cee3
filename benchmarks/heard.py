"""What the bytes of a reply carry, read by read: sound, or words.

Kept cheap, so that 128 replies at once cost the client little.
"""

from __future__ import annotations

import json
from typing import Protocol

from playback import Arrival

from sidecar.timebase import samples_to_seconds

BYTES_PER_SAMPLE = 2
WAV_HEADER_BYTES = 44


class Heard(Protocol):
    """One reply as it comes. Times are seconds after its request began."""

    arrivals: list[Arrival]  # stays empty for words

    def take(self, at_s: float, piece: bytes) -> None:
        """One read of the reply's body."""
        ...

    @property
    def first_s(self) -> float | None:
        """When the first sound, or the first word, was there."""
        ...


class Sound:
    """Samples, 16 bits each, after a header.

    A streamed wav's header is sent before there is any sound and is a read of its own, so its first sound is the second
    read; a whole wav brings both in one. What counts is that bytes beyond the header came.
    """

    def __init__(self, header_bytes: int) -> None:
        self.arrivals: list[Arrival] = []
        self._left_of_header, self._odd_bytes = header_bytes, 0

    def take(self, at_s: float, piece: bytes) -> None:
        header = min(len(piece), self._left_of_header)
        self._left_of_header -= header
        samples, self._odd_bytes = divmod(self._odd_bytes + len(piece) - header, BYTES_PER_SAMPLE)
        if samples:
            self.arrivals.append(Arrival(at_s, samples))

    @property
    def first_s(self) -> float | None:
        return self.arrivals[0].at_s if self.arrivals else None

    @property
    def audio_s(self) -> float:
        return samples_to_seconds(sum(samples for _, samples in self.arrivals))


class Words:
    """Server-sent events of a chat; read only until the first delta that says something."""

    def __init__(self) -> None:
        self.arrivals: list[Arrival] = []
        self.first_s: float | None = None
        self._unread = b""

    def take(self, at_s: float, piece: bytes) -> None:
        if self.first_s is not None:
            return
        *events, self._unread = (self._unread + piece).split(b"\n\n")
        if any(_says_something(event) for event in events):
            self.first_s = at_s


def _says_something(event: bytes) -> bool:
    if not event.startswith(b"data: {"):
        return False
    choices = json.loads(event.removeprefix(b"data: ")).get("choices") or [{}]
    return any(value for name, value in choices[0].get("delta", {}).items() if name != "role")
