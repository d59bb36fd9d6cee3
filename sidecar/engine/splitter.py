"""Token ids -> spoken text, speech codes, content text, tool calls and the end: a pure state machine.

Step-Audio 2 writes one stream in which text tokens and speech tokens take turns. This reads it by id alone, never by
the rhythm, so any grouping of the same ids gives the same results.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from step_audio_vllm.tool_calls import ToolCallDelta, ToolCallReader
from step_audio_vllm.vocabulary import Vocabulary


@dataclass(frozen=True)
class Split:
    """What one delta held."""

    spoken_text: str = ""  # what the voice says, a transcript
    speech_codes: list[int] = field(default_factory=list)  # 0 ... 6560, in order, 25 a second
    content_text: str = ""  # the written reply: text outside speech sections; calls too unless they are looked for
    ended: bool = False  # a stop token has come; whatever follows is ignored
    tool_calls: list[ToolCallDelta] = field(default_factory=list)  # pieces of calls, taken out of the content


class Utf8Text:
    """One text as a stream of bytes: a character comes out with its last byte, a broken one as U+FFFD.

    The pieces of a character may be far apart, with speech tokens between them.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, data: bytes) -> str:
        return self._decoder.decode(data)

    def finish(self) -> str:
        """U+FFFD for a character that was begun and never completed; ready for a new text afterwards."""
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return rest


class Splitter:
    """Reads one reply. `feed` ids as they come, then `finish` once.

    Args:
        vocabulary: the ids that mean something.
        decode_token: the bytes a text token stands for; an added token stands for its name.
        in_speech: the prompt ended with `<tts_start>`, so the reply begins inside a speech section.
        stop_ids: ids that end the reply; the vocabulary's own where not given.
        tool_calls: finds calls in the content; without it they stay text.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        decode_token: Callable[[int], bytes],
        *,
        in_speech: bool,
        stop_ids: Iterable[int] | None = None,
        tool_calls: ToolCallReader | None = None,
    ) -> None:
        self._vocabulary = vocabulary
        self._decode_token = decode_token
        self._stop_ids = vocabulary.stop_ids if stop_ids is None else frozenset(stop_ids)
        self._in_speech = in_speech
        self._spoken = Utf8Text()
        self._content = Utf8Text()
        self._tool_calls = tool_calls
        self._ended = False

    def feed(self, token_ids: Iterable[int]) -> Split:
        """What these ids add. Speech codes come out at once, whatever the text has to wait for."""
        spoken: list[str] = []
        content: list[str] = []
        codes: list[int] = []
        words = self._vocabulary
        for token_id in token_ids:
            if self._ended:
                break
            code = words.speech_code(token_id)
            if code is not None:
                codes.append(code)
            elif token_id in self._stop_ids:
                self._ended = True
                self._close(spoken, content)
            elif token_id in (words.tts_start, words.tts_end):
                self._in_speech = token_id == words.tts_start
                self._close(spoken, content)
            elif words.is_silent(token_id):
                continue
            elif self._in_speech:
                spoken.append(self._spoken.feed(self._decode_token(token_id)))
            else:
                content.append(self._content.feed(self._decode_token(token_id)))
        return self._split(spoken, codes, content)

    def finish(self) -> Split:
        """The stream is over: what was held back comes out, a character that was left unfinished as U+FFFD."""
        spoken: list[str] = []
        content: list[str] = []
        self._ended = True
        self._close(spoken, content)
        return self._split(spoken, [], content)

    def _split(self, spoken: list[str], codes: list[int], content: list[str]) -> Split:
        text = "".join(content)
        calls: list[ToolCallDelta] = []
        if self._tool_calls is not None:
            text, calls = self._tool_calls.feed(text)
            if self._ended:
                rest, more = self._tool_calls.finish()
                text, calls = text + rest, calls + more
        return Split("".join(spoken), codes, text, self._ended, calls)

    def _close(self, spoken: list[str], content: list[str]) -> None:
        """No character reaches over a section's border or the end."""
        spoken.append(self._spoken.finish())
        content.append(self._content.finish())
