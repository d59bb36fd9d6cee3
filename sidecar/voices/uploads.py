"""Voices that clients put in and take out: what names are free, and what may go."""

from __future__ import annotations

from sidecar.errors import BadRequest, Conflict, NotFound, NotPermitted, VoiceUnavailable
from sidecar.voice_names import DEFAULT_VOICE, NAME_IN_WORDS, is_voice_name
from sidecar.voices.authors import Authors
from sidecar.voices.catalogue import Catalogue, Found, shown
from sidecar.voices.folder import VoiceFolder
from sidecar.voices.recording import VoiceRecording
from sidecar.voices.voice import Voice


class Uploads:
    """Reads and writes files, so it is to be asked in a thread."""

    def __init__(self, catalogue: Catalogue, folder: VoiceFolder, authors: Authors) -> None:
        self._catalogue = catalogue
        self._folder = folder
        self._authors = authors

    def there(self, name: str, recording: VoiceRecording) -> Voice | None:
        """The voice of that name, if it is of this recording; None if the name is free.

        Raises:
            BadRequest: nothing can be called so.
            Conflict: the name is another recording's, or there is no room for one more.
        """
        if not is_voice_name(name):
            raise BadRequest(f"a voice's name is {NAME_IN_WORDS}; it is {shown(name)}", param="name")
        try:
            found = self._catalogue.find(self._listed(name))
        except VoiceUnavailable as error:
            raise Conflict(f"{error.message}; choose another name", param="name", code="voice_exists") from error
        if found is None:
            self._folder.require_room()
            return None
        if found.voice.sha256 != recording.sha256:
            raise _taken(name, found)
        if found.path is None:
            self._authors.keep(name, recording)
        return found.voice

    def keep(self, name: str, recording: VoiceRecording) -> Voice:
        """Puts the recording into the voice folder. One that came by this name in the meantime stays instead.

        Raises:
            Conflict: another one came, or the last room was taken, or what has the name is no voice.
            VoiceUnavailable: it cannot be written.
        """
        try:
            path = self._folder.keep(name, recording.data)
        except OSError as error:
            raise VoiceUnavailable(f"the recording cannot be kept: {error.strerror or error}") from error
        kept = self.there(name, recording)
        if kept is None:
            raise Conflict(
                f"{path.name} in the voice folder takes the name {name!r} and is no voice; choose another name",
                param="name",
                code="voice_exists",
            )
        return kept

    def remove(self, name: str) -> Voice:
        """
        Raises:
            NotFound: no voice is called that.
            NotPermitted: it is built in, or the server's default.
            VoiceUnavailable: its file cannot be removed.
        """
        name = self._listed(name)
        voice = self._deletable(name)
        try:
            self._folder.remove(name)
        except OSError as error:
            raise VoiceUnavailable(f"the voice {name!r} cannot be deleted: {error.strerror or error}") from error
        return voice

    def _deletable(self, name: str) -> Voice:
        if name == self._catalogue.default_name:
            raise NotPermitted(f"{name!r} is the server's default voice, which cannot be deleted", code="default_voice")
        try:
            found = self._catalogue.find(name)
        except VoiceUnavailable as error:
            raise NotFound(error.message, code="unknown_voice") from error
        if found is None:
            raise NotFound(f"no voice is called {shown(name)}; GET /v1/voices lists them", code="unknown_voice")
        if found.voice.built_in:
            raise NotPermitted(f"{name!r} is a built-in voice, which cannot be deleted", code="built_in_voice")
        return found.voice

    def _listed(self, name: str) -> str:
        return self._catalogue.default_name if name == DEFAULT_VOICE else name


def _taken(name: str, found: Found) -> Conflict:
    way_out = "" if found.voice.built_in else f", or DELETE /v1/voices/{name} first"
    return Conflict(
        f"a voice called {name!r} is there already, with another recording; choose another name{way_out}",
        param="name",
        code="voice_exists",
    )
