"""Opened voices in memory: built once whoever asks, bounded in bytes, the longest unheard let go first."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, is_dataclass

import torch

from sidecar.errors import Full, NotReady
from sidecar.token2wav.state import OpenedVoice
from sidecar.voices.once import Once
from sidecar.voices.recording import VoiceRecording

Build = Callable[[VoiceRecording], OpenedVoice]


class OpenedVoices:
    """By the sha256 of their recordings. To be called on the event loop; builds run beside it, one after the other.

    Streams hold the voices they speak with: what is let go here lives until they end. On disk there are only features:
    an H100 makes the 304 MB of a 9 s prompt (full size, 16 bits) of them in 0.15 s, and would read them back in 0.22 s.

    Args:
        max_bytes: of all voices together but the pinned ones. The newest always stays, however large: without it, each
            of its requests would build it anew.
    """

    def __init__(self, build: Build, max_bytes: int) -> None:
        self._build = build
        self._max_bytes = max_bytes
        self._voices: OrderedDict[str, OpenedVoice] = OrderedDict()
        self._pinned: dict[str, OpenedVoice] = {}
        self._building: Once[OpenedVoice] = Once()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="voices")
        self._closing = False

    def get(self, sha256: str) -> OpenedVoice | None:
        """The voice if it is in memory."""
        if sha256 in self._voices:
            self._voices.move_to_end(sha256)
        return self._pinned.get(sha256) or self._voices.get(sha256)

    async def open(self, recording: VoiceRecording) -> OpenedVoice:
        """The voice, built if it must be. A caller that goes away does not stop the build; no failure is remembered.

        Raises:
            SidecarError: as the build.
            Full: there is no memory for it.
            NotReady: closed, or `stop_waiting` was called.
        """
        sha256 = await asyncio.to_thread(lambda: recording.sha256)
        return self.get(sha256) or await self._building.do(sha256, lambda: self._built(sha256, recording))

    def pin(self, sha256: str, voice: OpenedVoice) -> None:
        """It stays for good, and does not count."""
        self._voices.pop(sha256, None)
        self._pinned[sha256] = voice

    def forget(self, sha256: str) -> None:
        self._voices.pop(sha256, None)

    def stop_waiting(self) -> None:
        """Who waits for a build gets NotReady. The one that runs cannot be stopped and is not waited for either: it may
        take longer than whoever stops the server has patience."""
        self._building.cancel()

    def close(self) -> None:
        """No build begins any more."""
        self._closing = True
        self._thread.shutdown(wait=False)
        self._voices.clear()

    async def _built(self, sha256: str, recording: VoiceRecording) -> OpenedVoice:
        if self._closing:
            raise NotReady("the server is shutting down")
        try:
            voice = await asyncio.get_running_loop().run_in_executor(self._thread, self._build, recording)
        except torch.OutOfMemoryError as error:
            self._voices.clear()  # streams hold those that are heard
            raise Full(
                "the GPU has no room for another voice while so many are heard; try again in a moment, or use one of "
                "those"
            ) from error
        self._voices[sha256] = voice
        self._let_go()
        return voice

    def _let_go(self) -> None:
        sizes = [memory_bytes(voice) for voice in self._voices.values()]
        while len(self._voices) > 1 and sum(sizes) > self._max_bytes:
            self._voices.popitem(last=False)
            sizes.pop(0)


def memory_bytes(voice: OpenedVoice) -> int:
    """What the voice's tensors take, wherever they lie; memory that several share counts once."""
    memory = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in _tensors(voice)}
    return sum(memory.values())


def _tensors(value: object) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif is_dataclass(value):
        for field in fields(value):
            yield from _tensors(getattr(value, field.name))
