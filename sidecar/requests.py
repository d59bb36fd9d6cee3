"""What was asked: the body of a request, parsed and checked field by field. No I/O and no defaults of the server."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from sidecar.errors import BadRequest
from sidecar.json_body import in_words, json_object
from sidecar.voice_names import DEFAULT_VOICE, NAME_IN_WORDS, is_voice_name

RESPONSE_FORMATS = ("wav", "pcm", "flac", "mp3", "opus", "aac")
MAX_SEED = 2**63 - 1
#: Above any context length: what is too much for the loaded model, the engine says.
MAX_TOKENS = 2**20

_FORM_BOOLEANS = {
    "true": True,
    "1": True,
    "yes": True,
    "on": True,
    "false": False,
    "0": False,
    "no": False,
    "off": False,
}
_INTEGER = re.compile(r"[+-]?[0-9]{1,20}")
_NUMBER = re.compile(r"[+-]?([0-9]{1,40}(\.[0-9]{0,40})?|\.[0-9]{1,40})([eE][+-]?[0-9]{1,3})?")


@dataclass(frozen=True, kw_only=True)
class SpeechRequest:
    """One `POST /generate`. `None` stands for a field that was not given."""

    text: str = ""
    audio: bytes | None = None
    audio_path: str | None = None
    streaming: bool = False
    system_prompt: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    max_tokens: int | None = None
    seed: int | None = None
    response_format: str = "wav"
    voice: str = DEFAULT_VOICE
    ignored_fields: tuple[str, ...] = ()

    @property
    def has_recording(self) -> bool:
        return self.audio is not None or self.audio_path is not None

    def __post_init__(self) -> None:
        if self.audio is not None and self.audio_path is not None:
            raise BadRequest("audio and audio_path were both given; send one recording, in one of them", param="audio")
        if not self.has_recording and not self.text.strip():
            raise BadRequest("text is missing or empty; send the words to speak, or a recording in audio", param="text")
        self._check_ranges()
        _one_of("response_format", self.response_format, RESPONSE_FORMATS)
        if not is_voice_name(self.voice):
            raise BadRequest(f"voice must be a name: {NAME_IN_WORDS}; it is {in_words(self.voice)}", param="voice")

    def _check_ranges(self) -> None:
        _within("temperature", self.temperature, 0, 2)
        _within("top_p", self.top_p, 0, 1, open_low=True)
        _within("top_k", self.top_k, -1, 2**31 - 1)
        _within("min_p", self.min_p, 0, 1)
        _within("repetition_penalty", self.repetition_penalty, 0, 2, open_low=True)
        _within("max_tokens", self.max_tokens, 1, MAX_TOKENS)
        _within("seed", self.seed, 0, MAX_SEED)

    @classmethod
    def from_json(cls, body: bytes) -> SpeechRequest:
        """A request from a JSON object; `null` counts as not given.

        Raises:
            BadRequest: the body is not a JSON object, or a field is not what it must be.
        """
        given = {name: value for name, value in json_object(body).items() if value is not None}
        if "audio" in given:
            raise BadRequest(
                "audio cannot travel in JSON; send the file as multipart/form-data, or name it in audio_path",
                param="audio",
            )
        values = {name: _checked_json(name, value) for name, value in given.items() if name in _KINDS}
        return cls(**values, ignored_fields=_unknown(given))

    @classmethod
    def from_form(
        cls, form_fields: Iterable[tuple[str, str]], files: Iterable[tuple[str, bytes]] = ()
    ) -> SpeechRequest:
        """A request from the text fields and the files of a form.

        Raises:
            BadRequest: a field came twice, or is not what it must be.
        """
        given: dict[str, str] = {}
        for name, text in form_fields:
            if name in given and name in _KINDS:
                raise BadRequest(f"{name} was given twice; send it once", param=name)
            given[name] = text
        if "audio" in given:
            raise BadRequest("audio must be a file (in curl: -F audio=@input.wav); a text came", param="audio")
        values = {name: _checked_form(name, text) for name, text in given.items() if name in _KINDS}
        audio, unknown_files = _one_recording(files)
        return cls(**values, audio=audio, ignored_fields=(*_unknown(given), *unknown_files))


#: What each field that a client may write is: the annotations above, `audio` apart, which is no text.
_KINDS: Mapping[str, str] = {
    setting.name: str(setting.type).removesuffix(" | None")
    for setting in fields(SpeechRequest)
    if setting.name not in ("audio", "ignored_fields")
}
_ALLOWED = {"str": "a string", "bool": "true or false", "int": "a whole number", "float": "a number"}


def _unknown(given: Iterable[str]) -> tuple[str, ...]:
    return tuple(name for name in given if name not in _KINDS)


def _one_recording(files: Iterable[tuple[str, bytes]]) -> tuple[bytes | None, tuple[str, ...]]:
    """The file called `audio`, and the names of the files that nobody asked for."""
    audio: bytes | None = None
    unknown: list[str] = []
    for name, data in files:
        if name in _KINDS:
            raise BadRequest(f"{name} came as a file; send it as text", param=name)
        if name != "audio":
            unknown.append(name)
        elif audio is None:
            audio = data
        else:
            raise BadRequest("audio was given twice; send one recording", param="audio")
    return audio, tuple(unknown)


def _checked_json(name: str, value: Any) -> Any:
    kind = _KINDS[name]
    if kind == "str" and isinstance(value, str):
        return _text(name, value)
    if kind == "bool" and isinstance(value, bool):
        return value
    if kind == "int" and isinstance(value, int) and not isinstance(value, bool):
        return value
    if kind == "float" and isinstance(value, int | float) and not isinstance(value, bool):
        return _finite(name, value)
    raise BadRequest(f"{name} must be {_ALLOWED[kind]}; it is {in_words(value)}", param=name)


def _checked_form(name: str, text: str) -> Any:
    kind, word = _KINDS[name], text.strip()
    if kind == "str":
        return _text(name, text)
    if kind == "bool" and word.lower() in _FORM_BOOLEANS:
        return _FORM_BOOLEANS[word.lower()]
    if kind == "int" and _INTEGER.fullmatch(word):
        return int(word)
    if kind == "float" and _NUMBER.fullmatch(word):
        return _finite(name, float(word))
    allowed = ", ".join(_FORM_BOOLEANS) if kind == "bool" else _ALLOWED[kind]
    raise BadRequest(f"{name} must be {allowed}; it is {in_words(text)}", param=name)


def _text(name: str, value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise BadRequest(
            f"{name} holds half of a surrogate pair at {error.start}; send whole characters", param=name
        ) from error
    return value


def _finite(name: str, value: float) -> float:
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise BadRequest(f"{name} must be a number that fits into 64 bits; it is {in_words(value)}", param=name)
    return number


def _within(name: str, value: float | None, low: int, high: int, *, open_low: bool = False) -> None:
    if value is None:
        return
    if value > high or value < low or (open_low and value == low):
        at_least = "above" if open_low else "at least"
        raise BadRequest(f"{name} must be {at_least} {low} and at most {high}; it is {in_words(value)}", param=name)


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise BadRequest(f"{name} must be {' or '.join(allowed)}; it is {in_words(value)}", param=name)
