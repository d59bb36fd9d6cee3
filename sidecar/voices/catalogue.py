"""Which voices there are, and where the recording of each is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sidecar.errors import VoiceUnavailable
from sidecar.voice_names import DEFAULT_VOICE, MAX_CHARACTERS, is_voice_name
from sidecar.voices.authors import AUTHORS_DEFAULT
from sidecar.voices.file_facts import KnownFiles
from sidecar.voices.folder import VoiceFolder
from sidecar.voices.voice import Voice

_NAMES_SHOWN = 20


@dataclass(frozen=True)
class Found:
    """A voice and its file; the authors' come from the network where there is no file."""

    voice: Voice
    path: Path | None


class Catalogue:
    """Reads folders and files, so it is to be asked in a thread.

    Args:
        model_dir: the checkpoint folder, whose voices come first.
        default: a voice's name, or the path of a recording, which then goes by `default`; without either the
            checkpoint's own default voice, else the authors'.
        authors: voices that can be had where the checkpoint and the folder have none of that name.
    """

    def __init__(self, model_dir: Path, folder: VoiceFolder, authors: list[Voice], *, default: str | None) -> None:
        self._in_model = (model_dir / "token2wav" / "voices", model_dir / "assets")
        self._folder = folder
        self._authors = {voice.name: voice for voice in authors}
        self._files = KnownFiles()
        self._default_path: Path | None = None
        self.default_name = AUTHORS_DEFAULT
        if default is None:
            if self._of_model(DEFAULT_VOICE) is not None:
                self.default_name = DEFAULT_VOICE
        elif is_voice_name(default):
            self.default_name = default
        else:
            self.default_name, self._default_path = DEFAULT_VOICE, Path(default)

    def names_in_short(self) -> str:
        """For a sentence. Whether the recordings can be used is not looked at."""
        names = sorted({*self._authors, *self._folder.recordings(), *self._built_in()})
        more = f" and {len(names) - _NAMES_SHOWN:,} more" if len(names) > _NAMES_SHOWN else ""
        return ", ".join(names[:_NAMES_SHOWN]) + more

    def find(self, name: str) -> Found | None:
        """
        Raises:
            VoiceUnavailable: there is a recording, but none that can be a voice; says why.
        """
        if not is_voice_name(name):
            return None
        path = self._built_in_path(name)
        if path is not None:
            return self._found(name, path, built_in=True)
        path = self._folder.find(name)
        if path is not None:
            return self._found(name, path, built_in=False)
        return Found(self._authors[name], None) if name in self._authors else None

    def voices(self) -> list[Voice]:
        """All that can speak, by name; recordings that cannot be used are left out."""
        found = dict(self._authors)
        for name, path in self._folder.recordings().items():
            self._add_usable(found, name, path, built_in=False)
        for name, path in self._built_in().items():
            self._add_usable(found, name, path, built_in=True)
        return [found[name] for name in sorted(found)]

    def _add_usable(self, found: dict[str, Voice], name: str, path: Path, *, built_in: bool) -> None:
        facts = self._files.facts(path)
        if facts.problem is None:
            found[name] = Voice(name, facts.sha256, facts.seconds, built_in)

    def _found(self, name: str, path: Path, *, built_in: bool) -> Found:
        facts = self._files.facts(path)
        if facts.problem is not None:
            raise VoiceUnavailable(f"the recording of the voice {name!r} cannot be used: {facts.problem}")
        return Found(Voice(name, facts.sha256, facts.seconds, built_in), path)

    def _built_in(self) -> dict[str, Path]:
        named = {path.stem for folder in self._in_model for path in folder.glob("*.wav") if is_voice_name(path.stem)}
        paths = {name: self._built_in_path(name) for name in {*named, DEFAULT_VOICE}}
        return {name: path for name, path in paths.items() if path is not None}

    def _built_in_path(self, name: str) -> Path | None:
        if name == DEFAULT_VOICE and self._default_path is not None:
            return self._default_path
        if name == DEFAULT_VOICE and self.default_name != DEFAULT_VOICE:
            return None  # the word stands for another voice
        return self._of_model(name)

    def _of_model(self, name: str) -> Path | None:
        paths = (folder / f"{name}.wav" for folder in self._in_model)
        return next((path for path in paths if path.is_file()), None)


def shown(name: str) -> str:
    """A name as it came, for a sentence; it may be anything."""
    return f"{name[:MAX_CHARACTERS]!r} ..." if len(name) > MAX_CHARACTERS else repr(name)
