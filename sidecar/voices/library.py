"""The voices that can speak: name -> opened voice, built once."""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path
from typing import Protocol

from sidecar.audio.decode import decode_recording
from sidecar.errors import BadRequest, SettingsError, UnsupportedMedia, UnusableAudio
from sidecar.token2wav.state import OpenedVoice, VoiceFeatures
from sidecar.voices.default_recording import Fetch, fetch_url, find_default_recording, user_cache_dir
from sidecar.voices.features import MAX_SECONDS, VoiceExtractor

log = logging.getLogger(__name__)

DEFAULT_VOICE = "default"


class VoiceOpener(Protocol):
    """What the library needs of token2wav."""

    def open_voice(self, features: VoiceFeatures) -> OpenedVoice: ...


class VoiceLibrary:
    """Reads a recording, makes its features and feeds it to token2wav: in a thread, once, whoever asks.

    Args:
        token2wav: opens voices.
        model_dir: the checkpoint folder; its token2wav part holds the two ONNX networks.
        voice: the default voice's recording; else the checkpoint's, or the authors', fetched.
    """

    def __init__(
        self,
        token2wav: VoiceOpener,
        model_dir: Path,
        *,
        voice: Path | None = None,
        cache_dir: Path | None = None,
        fetch: Fetch = fetch_url,
    ) -> None:
        self._token2wav = token2wav
        self._model_dir = model_dir
        self._voice = voice
        self._cache_dir = cache_dir
        self._fetch = fetch
        self._building: asyncio.Task[OpenedVoice] | None = None

    async def get(self, name: str) -> OpenedVoice:
        """The voice called `name`.

        Raises:
            BadRequest: no voice is called that.
            SidecarError: as `default`.
        """
        if name != DEFAULT_VOICE:
            raise BadRequest(
                f"no voice is called {name!r}; here is: {DEFAULT_VOICE}", param="voice", code="unknown_voice"
            )
        return await self.default()

    async def default(self) -> OpenedVoice:
        """The default voice. A caller that goes away does not stop the build; after a failure the next one tries again.

        Raises:
            SettingsError: there is no recording, or it cannot be used; says what to pass.
            CheckpointError: an ONNX file is missing or broken.
        """
        failed = (
            self._building is not None
            and self._building.done()
            and (self._building.cancelled() or self._building.exception() is not None)
        )
        if self._building is None or failed:
            self._building = asyncio.create_task(asyncio.to_thread(self._build))
        return await asyncio.shield(self._building)

    def _build(self) -> OpenedVoice:
        started = time.perf_counter()
        path = find_default_recording(
            self._model_dir,
            voice=self._voice,
            cache_dir=self._cache_dir or user_cache_dir(),
            fetch=self._fetch,
        )
        extractor = VoiceExtractor.from_folder(self._model_dir / "token2wav")
        try:
            recording = decode_recording(path.read_bytes(), max_seconds=MAX_SECONDS)
            features = extractor.features(recording.samples, recording.sample_rate_hz)
        except (UnsupportedMedia, UnusableAudio, OSError) as error:  # the server's recording, not the client's
            raise SettingsError(f"the default voice's recording {path} cannot be used: {error}") from error
        opened = self._token2wav.open_voice(features)
        log.info(
            "voice %s opened: %s, %.1f s of recording, in %.1f s",
            DEFAULT_VOICE,
            path,
            recording.seconds,
            time.perf_counter() - started,
        )
        return opened
