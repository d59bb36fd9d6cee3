"""The text of a reply that vLLM has already decoded: without speech sections and without control names.

Where token ids are at hand, go by them. vLLM's transcription endpoints hand a model class nothing but text, in which
speech tokens are spelled out, since the tokenizer does not call them special. It does call `<tts_start>` special, so
vLLM may drop that name before: a speech section's words then remain as text, and its speech tokens still go.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from step_audio_vllm.vocabulary import (
    AUDIO_END,
    AUDIO_PATCH,
    AUDIO_START,
    BEGIN_OF_TURN,
    STOP_NAMES,
    TOOL_CALL_END,
    TOOL_CALL_START,
    TTS_END,
    TTS_PAD,
    TTS_START,
)

_CONTROL_NAMES = (
    *STOP_NAMES,
    BEGIN_OF_TURN,
    AUDIO_START,
    AUDIO_END,
    AUDIO_PATCH,
    TTS_START,
    TTS_END,
    TTS_PAD,
    TOOL_CALL_START,
    TOOL_CALL_END,
)
_NAME = re.compile("|".join([*map(re.escape, _CONTROL_NAMES), r"<audio_\d{1,4}>"]))
_SPEECH_NAME_BEGUN = re.compile(r"<audio_\d{0,4}")


class ReplyText:
    """Takes decoded text in any portions; what it gives, joined, does not depend on them.

    Args:
        speaking: the prompt has opened a speech section, and the reply begins inside it.
        keep: names that stay in the text, for whoever reads it on.
    """

    def __init__(self, *, speaking: bool = False, keep: Collection[str] = ()) -> None:
        self._held = ""
        self._speaking = speaking
        self._keep = keep

    def feed(self, text: str) -> str:
        """The text that is certain to be text; what may be the beginning of a name waits."""
        self._held += text
        given, done = [], 0
        for name in _NAME.finditer(self._held):
            if name[0] in self._keep:
                continue
            given.append(self._outside_speech(self._held[done : name.start()]))
            self._speaking = name[0] == TTS_START or (self._speaking and name[0] != TTS_END)
            done = name.end()
        rest = self._held[done:]
        keep = _where_a_name_may_begin(rest)
        given.append(self._outside_speech(rest[:keep]))
        self._held = rest[keep:]
        return "".join(given)

    def finish(self) -> str:
        """What was held back and turned out to be no name."""
        held, self._held = self._held, ""
        return self._outside_speech(held)

    def process_delta(self, text_delta: str, finished: bool) -> str:
        """What vLLM calls for each delta of a streamed transcription."""
        return self.feed(text_delta) + (self.finish() if finished else "")

    def _outside_speech(self, text: str) -> str:
        return "" if self._speaking else text


def reply_text(text: str) -> str:
    """The same for a whole reply."""
    return ReplyText().process_delta(text, True)


def _where_a_name_may_begin(text: str) -> int:
    """Where the last `<` stands if a name may go on from there, else the text's end."""
    start = text.rfind("<")
    if start < 0:
        return len(text)
    begun = text[start:]
    may = any(name != begun and name.startswith(begun) for name in _CONTROL_NAMES) or bool(
        _SPEECH_NAME_BEGUN.fullmatch(begun)
    )
    # shorter than "<audio_" is covered by the control names that begin so
    return start if may else len(text)
