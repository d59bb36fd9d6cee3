"""One reply being encoded while the event loop goes on."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Executor

import numpy as np
from numpy.typing import NDArray

from sidecar.audio.encode import ENCODERS, Encoder
from sidecar.errors import EncodingFailed

logger = logging.getLogger(__name__)


class Encoding:
    """An encoder of one's own, worked in the thread where it is costly. Leaving its `with` frees the encoder; a piece
    that is being encoded at that moment is brought to its end first.

    Args:
        name: the format, one of `ENCODERS`.
        thread: of a single worker, so that pieces stay in their order.
    """

    def __init__(self, name: str, thread: Executor) -> None:
        kind = ENCODERS[name]
        self.media_type = kind.media_type
        self.suffix = kind.suffix
        self._name = name
        self._kind = kind
        self._thread = thread
        self._encoder: Encoder | None = None  # made by the first step, so that what fails there fails in one place
        self._samples = 0

    def __enter__(self) -> Encoding:
        return self

    def __exit__(self, *_: object) -> None:
        self._encoder = None

    async def streamed_header(self) -> bytes:
        """What goes before the sound while its length is not known."""
        return await self._step(lambda encoder: encoder.header(None))

    async def whole_header(self) -> bytes:
        """What goes before the sound that has been finished."""
        return await self._step(lambda encoder: encoder.header(self._samples))

    async def feed(self, samples: NDArray[np.float32]) -> bytes:
        """
        Raises:
            EncodingFailed: the encoder cannot be made, or does not take this; the same holds for all steps.
        """
        self._samples += samples.size
        return await self._step(lambda encoder: encoder.feed(samples))

    async def finish(self) -> bytes:
        return await self._step(lambda encoder: encoder.finish())

    async def _step(self, step: Callable[[Encoder], bytes]) -> bytes:
        try:
            if not self._kind.costly:
                return self._run(step)
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._run, step)
        except Exception as error:
            # FFmpeg raises of many kinds; whatever it was, it was this reply's own encoder
            logger.error("encoding as %s failed", self._name, exc_info=error)
            raise EncodingFailed(
                f"the sound could not be written as {self._name} ({error!r}); ask for another response_format"
            ) from error

    def _run(self, step: Callable[[Encoder], bytes]) -> bytes:
        if self._encoder is None:
            self._encoder = self._kind()
        return step(self._encoder)
