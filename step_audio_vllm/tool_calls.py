"""Tool calls out of the text that the model writes: whole, or as the text arrives.

A call is `<tool_call>`, a kind, a newline, a name, a newline, one JSON value, `</tool_call>`. Only calls that can be
carried out count: three parts, JSON that parses, a name that was offered. What does not count is text. Nothing that
a model can write raises.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any
from uuid import uuid4

from step_audio_vllm.tags import may_begin
from step_audio_vllm.vocabulary import TOOL_CALL_END, TOOL_CALL_START

#: What a JSON value can begin with.
JSON_BEGINNINGS = frozenset('{["-0123456789tfn')
LONE_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class ToolCall:
    """A call that counts."""

    name: str
    arguments: str  # one JSON value as text, `json.dumps` style, non-ASCII unescaped

    def as_openai(self) -> dict[str, Any]:
        """The call in a whole chat answer, with an id of its own."""
        return {**_identity(), "function": {"name": self.name, "arguments": self.arguments}}


@dataclass(frozen=True)
class ToolCallDelta:
    """A piece of a streamed call: the name comes once, with the first piece of its index."""

    index: int
    name: str | None = None
    arguments: str = ""  # to be joined; as the model wrote them

    def as_openai(self) -> dict[str, Any]:
        """The piece in a streamed chat answer; id, type and name come once, with a call's first piece."""
        if self.name is None:
            return {"index": self.index, "function": {"arguments": self.arguments}}
        return {"index": self.index, **_identity(), "function": {"name": self.name, "arguments": self.arguments}}


def _identity() -> dict[str, str]:
    return {"id": f"call_{uuid4().hex}", "type": "function"}


def read_tool_calls(text: str, offered: Collection[str] | None) -> tuple[str | None, list[ToolCall]]:
    """The content around the calls, None where it is empty, and the calls that count, in order.

    Text between calls belongs to nobody and is dropped, and so is a call without an end after one that counts. Where
    none counts, all is content, tags included.

    Args:
        text: outside speech sections.
        offered: names that may be called; None where the request listed no tools, and any may.
    """
    before, *_ = text.partition(TOOL_CALL_START)
    rest = text[len(before) :]
    calls: list[ToolCall] = []
    after = ""
    while rest:
        body, closed, behind = rest.removeprefix(TOOL_CALL_START).partition(TOOL_CALL_END)
        if not closed:
            break
        call = read_call(body, offered)
        if call is not None:
            calls.append(call)
        after, *_ = behind.partition(TOOL_CALL_START)
        rest = behind[len(after) :]
    return ((before + after) if calls else text) or None, calls


def read_call(body: str, offered: Collection[str] | None) -> ToolCall | None:
    """What stands between the two tags, as a call; None where it does not count."""
    parts = body.strip().split("\n", 2)
    if len(parts) < 3 or (offered is not None and parts[1] not in offered):
        return None
    try:
        # NaN and infinity are Python's, not JSON's; RecursionError is how json says "too deep"
        arguments = json.dumps(json.loads(parts[2].strip()), ensure_ascii=False, allow_nan=False)
    except (ValueError, RecursionError):
        return None
    # half a surrogate pair has no UTF-8, so it stays the escape that it came as
    return ToolCall(parts[1], LONE_SURROGATE.sub(lambda half: f"\\u{ord(half[0]):04x}", arguments))


class ToolCallReader:
    """The same, streamed: `feed` text as it comes, then `finish` once. Any cutting gives the same pieces, joined.

    Wherever every call counts, calls (arguments compared as JSON values) and content are those of `read_tool_calls`.
    A call is announced when its arguments begin. One that shows itself wrong before that, by its name, a missing line
    or a beginning no JSON has, comes out as text, or is dropped after an announced one, as when read whole. An
    announced call cannot be taken back: if its arguments then break or end early, it stays, and its arguments are the
    text that came. Text after a call waits for the end, since a further call would make it text between calls.

    Args:
        offered: names that may be called; None: any.
    """

    def __init__(self, offered: Collection[str] | None) -> None:
        self._offered = offered
        self._read: Callable[[], bool] = self._read_text  # understands some of the rest; False: needs more of it
        self._rest = ""  # has come and is not understood yet
        self._over = False  # no more will come
        self._calls = 0  # announced so far
        self._after = ""  # text since the last closed call, once a call has been announced
        self._content = ""  # to be given out, like the pieces
        self._pieces: list[ToolCallDelta] = []

    def feed(self, text: str) -> tuple[str, list[ToolCallDelta]]:
        """Content and pieces of calls that have become certain."""
        self._rest += text
        while self._read():
            pass
        return self._take()

    def finish(self) -> tuple[str, list[ToolCallDelta]]:
        """The text is over: what was held back comes out; a second call gives nothing."""
        self._over = True
        while self._read():
            pass
        self._content, self._after = self._content + self._after, ""
        return self._take()

    def _read_text(self) -> bool:
        text, opened = self._take_up_to(TOOL_CALL_START)
        self._write(text)
        if opened:
            self._read = self._read_header
        return opened

    def _read_header(self) -> bool:
        head, closed, _ = self._rest.partition(TOOL_CALL_END)
        lines = head.lstrip().split("\n", 2)
        arguments = lines[2].lstrip() if len(lines) == 3 else ""
        if len(lines) == 3 and self._offered is not None and lines[1] not in self._offered:
            return self._reject()
        if not arguments:
            return self._reject() if closed or self._over else False
        if arguments[0] not in JSON_BEGINNINGS:
            return self._reject()
        self._pieces.append(ToolCallDelta(self._calls, name=lines[1]))
        self._calls += 1
        self._rest = arguments + self._rest[len(head) :]
        self._read = self._read_arguments
        return True

    def _reject(self) -> bool:
        self._rest = TOOL_CALL_START + self._rest
        self._read = self._read_rejected
        return True

    def _read_arguments(self) -> bool:
        text, closed = self._take_up_to(TOOL_CALL_END)
        arguments = text.rstrip()
        self._add_arguments(arguments)
        if closed:
            self._close_call()
        else:
            self._rest = text[len(arguments) :] + self._rest  # white space counts only between other characters
        return closed

    def _read_rejected(self) -> bool:
        text, closed = self._take_up_to(TOOL_CALL_END)
        self._write_rejected(text + TOOL_CALL_END if closed else text)
        if closed:
            self._close_call()
        return closed

    def _close_call(self) -> None:
        self._read, self._after = self._read_text, ""

    def _take_up_to(self, tag: str) -> tuple[str, bool]:
        """Take what is certain to stand before the tag, and the tag too if it is whole."""
        text, found, behind = self._rest.partition(tag)
        if not found and not self._over:
            text = text[: len(text) - may_begin(tag, text)]
            behind = self._rest[len(text) :]
        self._rest = behind
        return text, bool(found)

    def _write(self, text: str) -> None:
        if self._calls:
            self._after += text
        else:
            self._content += text

    def _write_rejected(self, text: str) -> None:
        if not self._calls:
            self._content += text

    def _add_arguments(self, text: str) -> None:
        """As part of the piece that is waiting to be given out, or as one more."""
        if not text:
            return
        waiting = self._pieces[-1] if self._pieces else None
        if waiting is not None and waiting.index == self._calls - 1:
            self._pieces[-1] = replace(waiting, arguments=waiting.arguments + text)
        else:
            self._pieces.append(ToolCallDelta(self._calls - 1, arguments=text))

    def _take(self) -> tuple[str, list[ToolCallDelta]]:
        content, pieces = self._content, self._pieces
        self._content, self._pieces = "", []
        return content, pieces
