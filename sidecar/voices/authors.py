"""The model authors' own voices: known by their sha256, fetched once from where they are published."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx

from sidecar.errors import VoiceUnavailable
from sidecar.voices.once import Once
from sidecar.voices.recording import VoiceRecording, read_recording
from sidecar.voices.voice import Voice
from sidecar.voices.whole_file import write_whole

log = logging.getLogger(__name__)

#: The checkpoint on the hub comes without them.
AUTHORS_URL = "https://raw.githubusercontent.com/stepfun-ai/Step-Audio2/main/assets/{name}.wav"
#: The voice of a checkpoint that brings none.
AUTHORS_DEFAULT = "default_female"
AUTHORS_VOICES = (
    Voice(
        name=AUTHORS_DEFAULT,
        sha256="5fc92ddcd9bc9af10437d9630642378777a98fc260f16508a9777db12c830a41",
        seconds=434_028 / 48_000,
        built_in=True,
    ),
    Voice(
        name="default_male",
        sha256="812fedb6973d4a35441a84cf35536f29add2afa414c5e685d55b33896b290504",
        seconds=369_600 / 48_000,
        built_in=True,
    ),
)

#: A host that cannot be reached says so within this; a request is waiting for it.
CONNECT_TIMEOUT_S = 5.0
FETCH_TIMEOUT_S = 30.0
#: huggingface_hub's switch, by which people say that nothing is to be downloaded.
_OFFLINE = "HF_HUB_OFFLINE"
_YES = {"1", "ON", "YES", "TRUE"}

#: The bytes at a URL; raises httpx.HTTPError or OSError.
Fetch = Callable[[str], Awaitable[bytes]]


async def fetch_url(url: str) -> bytes:
    """
    Raises:
        httpx.HTTPError: it cannot be had.
        ConnectionError: HF_HUB_OFFLINE forbids it.
    """
    if os.environ.get(_OFFLINE, "").upper() in _YES:
        raise ConnectionError(f"{_OFFLINE} forbids it")
    timeout = httpx.Timeout(FETCH_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
    # in a thread, since a client reads the certificates of those it may trust first
    opening = asyncio.to_thread(partial(httpx.AsyncClient, timeout=timeout, follow_redirects=True))
    async with await opening as client:
        return (await client.get(url)).raise_for_status().content


@dataclass(frozen=True)
class _Published:
    voice: Voice
    url: str


class Authors:
    """Recordings from the folder they are kept in, else from the network.

    Args:
        folder: where fetched ones are kept.
        voices: what there is, and what its bytes must be.
        url: with `{name}` for a voice's name.
    """

    def __init__(
        self, folder: Path, fetch: Fetch, *, voices: tuple[Voice, ...] = AUTHORS_VOICES, url: str = AUTHORS_URL
    ) -> None:
        self._folder = folder
        self._fetch = fetch
        self._published = {voice.name: _Published(voice, url.format(name=voice.name)) for voice in voices}
        self._fetching: Once[VoiceRecording] = Once()

    @property
    def voices(self) -> list[Voice]:
        return [published.voice for published in self._published.values()]

    async def recording(self, name: str) -> VoiceRecording:
        """
        Raises:
            VoiceUnavailable: it cannot be fetched, or is another one; says what to do.
        """
        return await self._fetching.do(name, lambda: self._kept_or_fetched(self._published[name]))

    def stop_waiting(self) -> None:
        self._fetching.cancel()

    def keep(self, name: str, recording: VoiceRecording) -> None:
        """So that it need not be fetched, or fetched again. Writes a file, so it takes a thread."""
        try:
            write_whole(self._path(name), recording.data)
        except OSError as error:
            log.warning("%s cannot be kept, so the voice will be fetched: %s", self._path(name), error)

    async def _kept_or_fetched(self, published: _Published) -> VoiceRecording:
        kept = await asyncio.to_thread(_kept, self._path(published.voice.name), published.voice)
        return kept or await self._fetched(published)

    async def _fetched(self, published: _Published) -> VoiceRecording:
        log.info("fetching the voice %s from %s", published.voice.name, published.url)
        try:
            recording = VoiceRecording(await self._fetch(published.url))
        except (httpx.HTTPError, OSError) as error:
            raise _unavailable(published, f"fetching it failed ({_in_short(error)})") from error
        if recording.sha256 != published.voice.sha256:
            raise _unavailable(published, "what was fetched is another file (its sha256 differs)")
        await asyncio.to_thread(self.keep, published.voice.name, recording)
        return recording

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.wav"


def _kept(path: Path, voice: Voice) -> VoiceRecording | None:
    try:
        recording = read_recording(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        log.warning("%s cannot be read, so the voice is fetched again: %s", path, error)
        return None
    return recording if recording.sha256 == voice.sha256 else None


def _unavailable(published: _Published, why: str) -> VoiceUnavailable:
    name = published.voice.name
    return VoiceUnavailable(
        f"the checkpoint comes without the voice {name!r}, and {why}: put {published.url} into --voice-dir as "
        f"{name}.wav, or start the server with --voice FILE, a recording of 1 to 30 s"
    )


def _in_short(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or ['no reason given'])[0]}"
