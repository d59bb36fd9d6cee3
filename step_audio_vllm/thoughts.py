"""Where a thought ends: text between `<think>` and `</think>`, whole or as it arrives.

The thought is kept as it was written, so that a client can put it back and have the turn continued. The blank lines
between `</think>` and the answer belong to neither.
"""

from __future__ import annotations

from step_audio_vllm.tags import may_begin

THOUGHT_START = "<think>"
THOUGHT_END = "</think>"


def is_open(text: str) -> bool:
    """Whether text after this would be part of a thought."""
    return text.rfind(THOUGHT_START) > text.rfind(THOUGHT_END)


def split_thought(text: str) -> tuple[str, str]:
    """A reply that begins inside a thought -> the thought, and the answer ("" where the thought never ends)."""
    thought, _, rest = text.partition(THOUGHT_END)
    return thought, rest.lstrip("\n")


class ThoughtReader:
    """`split_thought` for a reply that arrives in portions; `</think>` may be cut anywhere.

    What could begin `</think>` is held back until it is certain, or until `finish`.
    """

    def __init__(self) -> None:
        self._held = ""
        self._ended = False
        self.answering = False  # something of the answer has been given out

    def feed(self, text: str) -> tuple[str, str]:
        """A portion of the reply -> what is certain of the thought and of the answer since the last portion."""
        if self.answering:
            return "", text
        thought = ""
        self._held += text
        if not self._ended:
            thought, self._held = self._certain_thought()
        if not self._ended:
            return thought, ""
        answer, self._held = self._held.lstrip("\n"), ""
        self.answering = bool(answer)
        return thought, answer

    def finish(self) -> str:
        """No portion follows: what was held back of the thought."""
        held, self._held = self._held, ""
        return held

    def _certain_thought(self) -> tuple[str, str]:
        """The thought in what is held, and what comes after it or may be a part of its end."""
        thought, tag, rest = self._held.partition(THOUGHT_END)
        if tag:
            self._ended = True
            return thought, rest
        at = len(self._held) - may_begin(THOUGHT_END, self._held)
        return self._held[:at], self._held[at:]
