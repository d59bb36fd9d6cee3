"""What tests of voices are made with: recordings, a token2wav that counts, a library that is closed."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import Awaitable, Callable
from typing import TypeVar

import httpx
import numpy as np
import soundfile
from numpy.typing import NDArray

from sidecar.token2wav import Token2Wav
from sidecar.token2wav.state import OpenedVoice, VoiceFeatures
from sidecar.voices.library import VoiceLibrary

Result = TypeVar("Result")


class CountingOpener:
    """A real token2wav that counts how often it opened a voice, in which thread and how many at once.

    While `gate` is closed it waits before it opens one.
    """

    def __init__(self, token2wav: Token2Wav) -> None:
        self.token2wav = token2wav
        self.threads: list[int] = []
        self.at_once = self.most_at_once = 0
        self.gate = threading.Event()
        self.gate.set()
        self.started = threading.Event()

    def open_voice(self, features: VoiceFeatures) -> OpenedVoice:
        self.threads.append(threading.get_ident())
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        self.started.set()
        assert self.gate.wait(30), "the test never opened the gate"
        try:
            return self.token2wav.open_voice(features)
        finally:
            self.at_once -= 1

    @property
    def builds(self) -> int:
        return len(self.threads)


async def no_network(url: str) -> bytes:
    raise httpx.ConnectError(f"no network here, asked for {url}")


def sweep(seconds: float, rate_hz: int = 16_000, low_hz: float = 100.0) -> NDArray[np.float32]:
    """Samples (S,) of a tone that rises."""
    t = np.arange(round(seconds * rate_hz)) / rate_hz
    return (0.3 * np.sin(2 * np.pi * (low_hz + 150 * t) * t)).astype(np.float32)


def recording(low_hz: float = 100.0, *, seconds: float = 1.0, form: str = "WAV") -> bytes:
    """A sound file; another `low_hz` is another recording."""
    return sound_file(sweep(seconds, low_hz=low_hz), form=form)


def sound_file(samples: NDArray[np.float32], rate_hz: int = 16_000, form: str = "WAV") -> bytes:
    """Samples (S,) or (channels, S) as a file."""
    file = io.BytesIO()
    soundfile.write(file, samples.T, rate_hz, format=form)
    return file.getvalue()


def use(library: VoiceLibrary, what: Callable[[VoiceLibrary], Awaitable[Result]]) -> Result:
    """What comes of it; the library is closed afterwards."""

    async def used() -> Result:
        try:
            return await what(library)
        finally:
            await library.close()

    return asyncio.run(used())
