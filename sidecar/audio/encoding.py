"""One reply being encoded while the event loop goes on."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from sidecar.audio.encode import ENCODERS, Encoder
from sidecar.errors import EncodingFailed

logger = logging.getLogger(__name__)


class Encoding:
    """An encoder of one's own, worked in the thread where it is costly. Leaving its `with` frees the encoder, after the
    piece that is being encoded at that moment.

    Args:
        name: the format, one of `ENCODERS`.
        whole: of the encoder: bytes may be kept until the end.
        thread: of a single worker, so that pieces stay in their order.
    """

    def __init__(self, name: str, thread: Executor, *, whole: bool) -> None:
        kind = ENCODERS[name]
        self.media_type = kind.media_type
        self.suffix = kind.suffix
        self._name = name
        self._kind = kind
        self._thread = thread
        self._whole = whole
        self._encoder: Encoder | None = None  # made by the first step, so that what fails there fails in one place

    def __enter__(self) -> Encoding:
        return self

    def __exit__(self, *_: object) -> None:
        # there too, so that it comes after the piece; where the thread has been shut down the server ends
        with suppress(RuntimeError):
            self._thread.submit(self._close)

    async def header(self) -> bytes:
        """
        Raises:
            EncodingFailed: the encoder cannot be made, or does not take this; the same holds for all steps.
        """
        return await self._step(lambda encoder: encoder.header())

    async def feed(self, samples: NDArray[np.float32]) -> bytes:
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
            self._encoder = self._kind(whole=self._whole)
        return step(self._encoder)

    def _close(self) -> None:
        encoder, self._encoder = self._encoder, None
        if encoder is not None:
            encoder.close()
