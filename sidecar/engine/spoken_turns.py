"""The spoken turns of a conversation's history, as token ids.

A turn's text and codes do not say everything: the model may cut a word into other tokens than the tokenizer would, or
leave its rhythm. So the ids of the last replies are kept, and a turn that comes back unchanged becomes exactly what the
model wrote; any other is built from its text and codes.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from threading import Lock
from typing import Any

from sidecar.chat_messages import AudioItem
from sidecar.engine.audio_items import spoken_item
from sidecar.engine.interleave import interleave
from sidecar.engine.text import TextTokenizer
from sidecar.engine.tts_content import TtsContent

#: Replies that are kept: some megabytes of ids, and more turns than the conversations of a full server have.
KEPT_REPLIES = 1024


class SpokenTurns:
    """The replies of late, by what they said. Threads share it."""

    def __init__(self, capacity: int = KEPT_REPLIES) -> None:
        self._capacity = capacity
        self._kept: OrderedDict[bytes, array[int]] = OrderedDict()
        self._lock = Lock()

    def keep(self, said: TtsContent, section: Sequence[int]) -> None:
        """Remember the ids of a speech section, from `<tts_start>` on."""
        with self._lock:
            key = _key(said)
            self._kept[key] = array("i", section)
            self._kept.move_to_end(key)
            if len(self._kept) > self._capacity:
                self._kept.popitem(last=False)

    def item(self, tts_content: Any, where: str, text: TextTokenizer) -> AudioItem:
        """The item for the `tts_content` of an assistant's message.

        Raises:
            BadRequest: it is not what it must be, or a text that is not a reply of ours names a control token.
        """
        said = TtsContent.from_json(tts_content, where)
        kept = self._find(said)
        if kept is not None:
            return spoken_item(kept)
        text.require_plain(said.text, f"{where}.tts_text")
        return spoken_item(interleave(text.encode(said.text), said.codes, text.vocabulary))

    def _find(self, said: TtsContent) -> Sequence[int] | None:
        with self._lock:
            kept = self._kept.get(_key(said))
            if kept is not None:
                self._kept.move_to_end(_key(said))
            return kept


def speech_section(token_ids: Sequence[int], text: TextTokenizer) -> list[int] | None:
    """The speech section at the beginning of a reply that was opened with `<tts_start>`.

    Returns:
        `<tts_start>` and what was generated, up to and with `<tts_end>`, or to the end of a reply that was cut before.
        None where the reply speaks again later, or holds an id that no turn of a history may have.
    """
    words = text.vocabulary
    ended = next((at for at, token in enumerate(token_ids) if token in words.stop_ids), len(token_ids))
    reply = list(token_ids[:ended])
    section = reply[: reply.index(words.tts_end) + 1] if words.tts_end in reply else reply
    if words.tts_start in reply or not text.spoken_ids.issuperset(section):
        return None
    return [words.tts_start, *section]


def _key(said: TtsContent) -> bytes:
    return hashlib.sha256(repr((said.text, said.codes)).encode()).digest()
