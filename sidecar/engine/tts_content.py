"""`tts_content`, the form in which a spoken turn travels in a chat: its text, and the names of its speech tokens."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sidecar.errors import BadRequest
from step_audio_vllm.vocabulary import SPEECH_CODES, SPEECH_PAD_CODE, speech_token_name

_TOKEN = re.compile(re.escape(speech_token_name(0)).replace("0", "(0|[1-9][0-9]{0,3})"))
_SHOWN_CHARACTERS = 24


@dataclass(frozen=True)
class TtsContent:
    """What was said, and the codes 0 ... 6560 that say it."""

    text: str
    codes: tuple[int, ...]

    @classmethod
    def from_json(cls, given: Any, where: str) -> TtsContent:
        """Read `{"tts_text": ..., "tts_audio": "<audio_12><audio_7>..."}`; what is missing or null is empty.

        Raises:
            BadRequest: it is not that; names the place.
        """
        if not isinstance(given, dict):
            raise BadRequest(f"{where} must be an object with tts_text and tts_audio", param=where)
        text = _string(given.get("tts_text"), f"{where}.tts_text")
        return cls(text, codes_of(_string(given.get("tts_audio"), f"{where}.tts_audio"), f"{where}.tts_audio"))


def tts_audio_of(codes: Iterable[int]) -> str:
    return "".join(map(speech_token_name, codes))


def codes_of(tts_audio: str, where: str) -> tuple[int, ...]:
    """The codes that these names stand for, without the padding.

    Raises:
        BadRequest: anything else is among them; names the place.
    """
    codes: list[int] = []
    at = 0
    while at < len(tts_audio):
        name = _TOKEN.match(tts_audio, at)
        if name is None or int(name[1]) > SPEECH_PAD_CODE:
            raise BadRequest(
                f"{where} has {tts_audio[at : at + _SHOWN_CHARACTERS]!r} at character {at}, after {len(codes)} speech "
                f"tokens; it must be nothing but {speech_token_name(0)} ... {speech_token_name(SPEECH_PAD_CODE)}, one "
                "after the other, as an answer's tts_content has them",
                param=where,
            )
        codes.append(int(name[1]))
        at = name.end()
    return tuple(code for code in codes if code < SPEECH_CODES)


def _string(value: Any, where: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise BadRequest(f"{where} must be a string", param=where)
    return value
