"""The voices that can speak: name -> opened voice. Start here; the parts are the other files of the folder."""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path

from sidecar.errors import SettingsError, SidecarError, SynthesisFailed, UnknownVoice, UnusableAudio, VoiceUnavailable
from sidecar.settings import Settings
from sidecar.token2wav.state import OpenedVoice
from sidecar.voice_names import DEFAULT_VOICE
from sidecar.voices.authors import Authors, Fetch, fetch_url
from sidecar.voices.build import VoiceBuilder, VoiceOpener
from sidecar.voices.catalogue import Catalogue, Found, shown
from sidecar.voices.folder import VoiceFolder
from sidecar.voices.opened import OpenedVoices
from sidecar.voices.recording import VoiceRecording, read_recording, require_small
from sidecar.voices.uploads import Uploads
from sidecar.voices.voice import Voice

__all__ = ["Voice", "VoiceLibrary"]

log = logging.getLogger(__name__)


class VoiceLibrary:
    """Files are read, sound is decoded and networks run in threads; nothing here holds up the event loop.

    Args:
        token2wav: opens voices.
        model_dir: the checkpoint folder; its token2wav part holds the two ONNX networks.
        voice: the default voice, by name, or by the path of its recording (a word that could be a name is one); else
            the checkpoint's own, else the authors'.
        voice_dir: where more voices are, and where added ones are kept; else they go when the library is closed.
        memory_mb: megabytes (10^6) of opened voices to keep beside the default one; the newest stays in any case.
        cache_dir: for what is fetched or computed once; else under the user's cache folder.
    """

    def __init__(
        self,
        token2wav: VoiceOpener,
        model_dir: Path,
        *,
        voice: str | None = None,
        voice_dir: Path | None = None,
        memory_mb: float = Settings.voice_memory_mb,
        cache_dir: Path | None = None,
        fetch: Fetch = fetch_url,
    ) -> None:
        kept = cache_dir or user_cache_dir()
        self._voice = voice
        self._authors = Authors(kept, fetch)
        self._folder = VoiceFolder(voice_dir)
        self._catalogue = Catalogue(model_dir, self._folder, self._authors.voices, default=voice)
        self._uploads = Uploads(self._catalogue, self._folder, self._authors)
        self._builder = VoiceBuilder(token2wav, model_dir / "token2wav", kept / "features")
        self._opened = OpenedVoices(self._builder.build, int(memory_mb * 1e6))
        self._default: OpenedVoice | None = None

    @property
    def default_name(self) -> str:
        """What the default voice is called in a listing; `default` stands for it in requests."""
        return self._catalogue.default_name

    async def default(self) -> OpenedVoice:
        """The default voice, read once: as long as the library is open, it stays what it was.

        Raises:
            SettingsError: there is no recording, or it cannot be used; says what to pass.
            CheckpointError: an ONNX file is missing or broken.
        """
        if self._default is None:
            try:
                sha256, opened = await self._open(self.default_name)
            except (UnknownVoice, VoiceUnavailable, UnusableAudio, SynthesisFailed) as error:
                raise self._cannot_start(error) from error
            self._opened.pin(sha256, opened)
            self._default = opened
        return self._default

    async def get(self, name: str) -> OpenedVoice:
        """The voice called `name`.

        Raises:
            UnknownVoice: no voice is called that.
            VoiceUnavailable: its recording cannot be had or used.
            SidecarError: as `default`.
        """
        if name in (DEFAULT_VOICE, self.default_name):
            return await self.default()
        _, opened = await self._open(name)
        return opened

    async def voices(self) -> list[Voice]:
        """All that can speak, by name."""
        return await asyncio.to_thread(self._catalogue.voices)

    async def add(self, name: str, data: bytes) -> tuple[Voice, bool]:
        """A voice from a sound file's bytes, opened when this returns, and True; or the same one, if there, and False.

        Raises:
            BadRequest: nothing can be called so.
            TooLarge, UnsupportedMedia, UnusableAudio: the recording cannot be a voice.
            Conflict: the name is another recording's, or there are too many voices.
            VoiceUnavailable: the recording cannot be kept.
        """
        require_small(data)
        recording = VoiceRecording(data)
        there = await asyncio.to_thread(self._uploads.there, name, recording)
        if there is not None:
            return there, False
        await asyncio.to_thread(recording.decoded)  # refuses what cannot be a voice, before it waits for a build
        try:
            await self._opened.open(recording)
        except SynthesisFailed as error:
            raise UnusableAudio(error.message) from error
        return await asyncio.to_thread(self._uploads.keep, name, recording), True

    async def delete(self, name: str) -> Voice:
        """Streams that speak with it go on. Nothing of its recording stays, unless another voice has the same.

        Raises:
            NotFound: no voice is called that.
            NotPermitted: it is built in, or the server's default.
            VoiceUnavailable: its file cannot be removed.
        """
        deleted = await asyncio.to_thread(self._uploads.remove, name)
        if deleted.sha256 not in {voice.sha256 for voice in await self.voices()}:
            self._opened.forget(deleted.sha256)
            await asyncio.to_thread(self._builder.forget, deleted.sha256)
        return deleted

    def stop_waiting(self) -> None:
        """Who waits for a voice to be fetched or opened gets NotReady: the server is about to end."""
        self._authors.stop_waiting()
        self._opened.stop_waiting()

    async def close(self) -> None:
        """Recordings in a temporary folder go."""
        self.stop_waiting()
        self._opened.close()
        await asyncio.to_thread(self._folder.close)

    async def _open(self, name: str) -> tuple[str, OpenedVoice]:
        found = await asyncio.to_thread(self._find, name)
        opened = self._opened.get(found.voice.sha256)
        if opened is not None:
            return found.voice.sha256, opened
        if found.path is None:
            recording = await self._authors.recording(name)
        else:
            # what is read now decides, not what was there a moment ago
            recording = await asyncio.to_thread(_read, name, found.path)
        opened = await self._opened.open(recording)
        log.info("voice %s opened: %s", name, found.path or "the authors' recording")
        return recording.sha256, opened

    def _find(self, name: str) -> Found:
        found = self._catalogue.find(name)
        if found is None:
            raise UnknownVoice(
                f"no voice is called {shown(name)}; here are {self._catalogue.names_in_short()}, "
                "and POST /v1/voices adds one",
                param="voice",
            )
        return found

    def _cannot_start(self, error: SidecarError) -> SettingsError:
        if self._voice is None:
            return SettingsError(f"the default voice {self.default_name} cannot speak: {error.message}")
        way_out = f"; a recording's path is ./{self._voice}" if isinstance(error, UnknownVoice) else ""
        return SettingsError(f"--voice {self._voice} cannot speak: {error.message}{way_out}")


def user_cache_dir() -> Path:
    """Where fetched voices and features are kept: under XDG_CACHE_HOME, or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "step-audio-serve" / "voices"


def _read(name: str, path: Path) -> VoiceRecording:
    try:
        return read_recording(path)
    except OSError as error:
        raise VoiceUnavailable(f"the recording of the voice {name!r} cannot be read: {error.strerror}") from error
