"""A spoken reply on its way back: the engine's token ids -> `content`, `tts_content` and `tool_calls` of a chat answer.

`WholeReply` reads an answer that is there, `StreamedReply` one that is on its way. Each choice is read with a splitter
of its own; the engine's text is not looked at.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from typing import Any

from sidecar.engine.speech_chat import SpeechChat
from sidecar.engine.splitter import Split
from sidecar.engine.spoken_turns import SpokenTurns, speech_section
from sidecar.engine.text import TextTokenizer
from sidecar.engine.tts_content import TtsContent, tts_audio_of
from sidecar.errors import EngineFailed

#: What the engine says about its own text, or about ids that were not asked for by the client.
IDS_OF_CHOICE, IDS_OF_PROMPT = "token_ids", "prompt_token_ids"
REASONING = ("reasoning", "reasoning_content")


class SpokenChoice:
    """One choice, read from its ids. What was said is remembered when it is over."""

    def __init__(self, asked: SpeechChat, text: TextTokenizer, turns: SpokenTurns) -> None:
        self._splitter = asked.splitter(text)
        self._text = text
        self._turns = turns
        self._ids: list[int] = []
        self._said = ""
        self._codes: list[int] = []

    def feed(self, token_ids: Sequence[int], *, last: bool) -> list[Split]:
        """What these ids say, and with the last ones what was still held back."""
        self._ids.extend(token_ids)
        splits = [self._splitter.feed(token_ids)]
        if last:
            splits.append(self._splitter.finish())
        for split in splits:
            self._said += split.spoken_text
            self._codes += split.speech_codes
        if last:
            self._remember()
        return splits

    def _remember(self) -> None:
        section = speech_section(self._ids, self._text)
        if section is not None:
            self._turns.keep(TtsContent(self._said, tuple(self._codes)), section)


class WholeReply:
    """The answer to a chat that is not streamed."""

    def __init__(self, asked: SpeechChat, text: TextTokenizer, turns: SpokenTurns) -> None:
        self._asked = asked
        self._new_choice = partial(SpokenChoice, asked, text, turns)

    def read(self, body: bytes) -> dict[str, Any]:
        """
        Raises:
            EngineFailed: it is no chat answer.
        """
        answer = parsed(body)
        if not isinstance(answer.get("choices"), list):
            raise EngineFailed(f"the language model's answer has no choices: {body[:100]!r}")
        for choice in answer["choices"]:
            self._read(choice)
        if not self._asked.wants_ids:
            answer[IDS_OF_PROMPT] = None
        return answer

    def _read(self, choice: dict[str, Any]) -> None:
        splits = self._new_choice().feed(choice.get(IDS_OF_CHOICE) or [], last=True)
        content, calls = self._asked.read_calls("".join(split.content_text for split in splits))
        message = choice["message"]
        message.update({key: None for key in REASONING if key in message})
        message.update(
            content=content,
            tts_content={
                "tts_text": "".join(split.spoken_text for split in splits),
                "tts_audio": tts_audio_of(code for split in splits for code in split.speech_codes),
            },
            tool_calls=[call.as_openai() for call in calls],
        )
        choice["finish_reason"] = finish_reason(choice, called=bool(calls))
        if not self._asked.wants_ids:
            choice[IDS_OF_CHOICE] = None


class StreamedReply:
    """The events of a streamed chat. An event that is none of ours, as an error, passes as it came."""

    def __init__(self, asked: SpeechChat, text: TextTokenizer, turns: SpokenTurns) -> None:
        self._choices: dict[int, StreamedChoice] = {}
        self._new_choice = partial(SpokenChoice, asked, text, turns)
        self._one_call_alone = asked.one_call_alone
        self._wants_ids = asked.wants_ids
        self._rest = b""  # a line whose end has not come yet

    def feed(self, piece: bytes) -> bytes:
        """
        Raises:
            EngineFailed: an event is no chat event.
        """
        *lines, self._rest = (self._rest + piece).split(b"\n")
        return b"".join(self._line(line) + b"\n" for line in lines)

    def finish(self) -> bytes:
        return self._rest

    def _line(self, line: bytes) -> bytes:
        data = line.removeprefix(b"data:").strip()
        if data == line.strip() or data == b"[DONE]":
            return line
        event = parsed(data)
        if "error" in event:
            return line
        for choice in event.get("choices") or []:
            if choice["index"] not in self._choices:
                self._choices[choice["index"]] = StreamedChoice(self._new_choice(), self._one_call_alone)
            self._choices[choice["index"]].write(choice)
            if not self._wants_ids:
                choice.pop(IDS_OF_CHOICE, None)
        if not self._wants_ids:
            event.pop(IDS_OF_PROMPT, None)
        return b"data: " + json.dumps(event, ensure_ascii=False).encode()


class StreamedChoice:
    """Rewrites the events of one choice."""

    def __init__(self, spoken: SpokenChoice, one_call_alone: bool) -> None:
        self._spoken = spoken
        self._one_call_alone = one_call_alone
        self._called = False

    def write(self, choice: dict[str, Any]) -> None:
        delta: dict[str, Any] = {}
        if "role" in choice["delta"]:
            delta = {"role": choice["delta"]["role"], "content": ""}
        last = choice.get("finish_reason") is not None
        for split in self._spoken.feed(choice.get(IDS_OF_CHOICE) or [], last=last):
            add_split(delta, split, one_call_alone=self._one_call_alone)
        self._called |= "tool_calls" in delta
        choice["delta"] = delta
        if last:
            choice["finish_reason"] = finish_reason(choice, called=self._called)


def finish_reason(choice: dict[str, Any], *, called: bool) -> str | None:
    """A reply that was cut is no finished call: what was streamed of its arguments may be half of them."""
    reason: str | None = choice.get("finish_reason")
    return "tool_calls" if called and reason == "stop" else reason


def add_split(delta: dict[str, Any], split: Split, *, one_call_alone: bool) -> None:
    """What a part of a reply adds to a delta; what adds nothing leaves no key."""
    if split.content_text:
        delta["content"] = delta.get("content", "") + split.content_text
    added = {"tts_text": split.spoken_text, "tts_audio": tts_audio_of(split.speech_codes)}
    for key, text in added.items():
        if text:
            said = delta.setdefault("tts_content", {})
            said[key] = said.get(key, "") + text
    for call in split.tool_calls:
        if one_call_alone and call.index > 0:
            continue
        delta.setdefault("tool_calls", []).append(call.as_openai())


def parsed(body: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(body)
    except ValueError as error:
        raise EngineFailed(f"the language model's answer is no JSON: {body[:100]!r}") from error
    if not isinstance(answer, dict):
        raise EngineFailed(f"the language model's answer is no object: {body[:100]!r}")
    return answer
