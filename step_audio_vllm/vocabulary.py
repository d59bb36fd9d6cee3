"""The special tokens of Step-Audio 2 by name, and what a token id is: text, speech or neither.

No id is written here or anywhere else: `Vocabulary.from_ids` looks each name up in the loaded tokenizer's table and
refuses a tokenizer that lacks one. This module imports nothing, so that the plugin, the sidecar and the launcher
can all read it. Source: the tokenizer of the published checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

END_OF_TURN = "<|EOT|>"
BEGIN_OF_TURN = "<|BOT|>"
END_OF_TEXT = "<|endoftext|>"
IM_END = "<|im_end|>"
AUDIO_START = "<audio_start>"
AUDIO_END = "<audio_end>"
AUDIO_PATCH = "<audio_patch>"
TTS_START = "<tts_start>"
TTS_END = "<tts_end>"
TTS_PAD = "<tts_pad>"
TOOL_CALL_START = "<tool_call>"
TOOL_CALL_END = "</tool_call>"

#: Codes that have a sound. Code 6561 stands where a speech token would when the speech has run out.
SPEECH_CODES = 6561
SPEECH_PAD_CODE = 6561

#: Any of these ends a reply. A tokenizer must have the first; the others stop it too where they exist.
STOP_NAMES = (END_OF_TURN, END_OF_TEXT, IM_END)


def speech_token_name(code: int) -> str:
    """The name of a speech token in the tokenizer, `<audio_17>` for code 17."""
    return f"<audio_{code}>"


class MissingToken(ValueError):
    """The tokenizer is not Step-Audio 2's: it lacks a token that the format is made of."""


@dataclass(frozen=True)
class Vocabulary:
    """Token ids by role. Made by `from_ids`; compare ids with these, never with numbers."""

    stop_ids: frozenset[int]
    begin_of_turn: int
    end_of_turn: int
    audio_start: int
    audio_end: int
    audio_patch: int
    tts_start: int
    tts_end: int
    tts_pad: int
    tool_call_start: int
    tool_call_end: int
    first_speech_id: int
    first_control_id: int
    last_control_id: int

    @classmethod
    def from_ids(cls, ids: Mapping[str, int]) -> Vocabulary:
        """Look every name up in a tokenizer's name -> id table.

        Raises:
            MissingToken: a name is absent, or the speech tokens are not consecutive.
        """

        def find(name: str) -> int:
            if name not in ids:
                raise MissingToken(
                    f"the tokenizer has no token {name!r}: this is not a Step-Audio 2 tokenizer, or it is damaged; "
                    "download the checkpoint again"
                )
            return ids[name]

        first = find(speech_token_name(0))
        for code in range(SPEECH_CODES + 1):
            if find(speech_token_name(code)) != first + code:
                raise MissingToken(
                    f"speech token {speech_token_name(code)!r} has id {ids[speech_token_name(code)]} where "
                    f"{first + code} was expected: the speech tokens must be consecutive"
                )
        between = [find(name) for name in (AUDIO_START, AUDIO_END, AUDIO_PATCH, TTS_START, TTS_END, TTS_PAD)]
        return cls(
            stop_ids=frozenset(ids[name] for name in STOP_NAMES if name in ids) | {find(END_OF_TURN)},
            begin_of_turn=find(BEGIN_OF_TURN),
            end_of_turn=find(END_OF_TURN),
            audio_start=find(AUDIO_START),
            audio_end=find(AUDIO_END),
            audio_patch=find(AUDIO_PATCH),
            tts_start=find(TTS_START),
            tts_end=find(TTS_END),
            tts_pad=find(TTS_PAD),
            tool_call_start=find(TOOL_CALL_START),
            tool_call_end=find(TOOL_CALL_END),
            first_speech_id=first,
            first_control_id=min(between),
            last_control_id=max(between),
        )

    def speech_code(self, token_id: int) -> int | None:
        """The code 0 … 6560 of a speech token that can be spoken; None for padding and for every other id."""
        code = token_id - self.first_speech_id
        return code if 0 <= code < SPEECH_CODES else None

    def is_silent(self, token_id: int) -> bool:
        """True for ids that are neither text nor sound: control names, speech padding and rows without a token."""
        return (
            self.first_control_id <= token_id <= self.last_control_id
            or token_id == self.begin_of_turn
            or token_id >= self.first_speech_id + SPEECH_CODES
        )
