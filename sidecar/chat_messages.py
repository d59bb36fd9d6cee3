"""The messages of a chat, written anew from the fields that are known, so that nothing unseen travels on."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from sidecar.errors import BadRequest

#: What a part of text calls its text, by the part's type.
TEXT_KEYS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}

Part = dict[str, Any]


@dataclass(frozen=True)
class AudioItem:
    """One `input_audio` item on its way to the engine, where `prompt_tokens` ids stand for it."""

    wav: bytes
    prompt_tokens: int
    is_recording: bool = True  # else a spoken turn of the history

    def part(self) -> Part:
        return {"type": "input_audio", "input_audio": {"data": base64.b64encode(self.wav).decode(), "format": "wav"}}


class MessageReader:
    """Reads the messages of one chat; `items` are those of the messages read so far, in order.

    Args:
        require_plain: text and the name of its field; raises BadRequest for text that names a control token.
        recording: an uploaded recording as items; raises for what cannot be used.
        spoken_turn: an assistant message's `tts_content` and the name of its field, as an item; raises BadRequest.
    """

    def __init__(
        self,
        *,
        require_plain: Callable[[str, str], None],
        recording: Callable[[bytes], list[AudioItem]],
        spoken_turn: Callable[[Any, str], AudioItem],
    ) -> None:
        self.items: list[AudioItem] = []
        self._require_plain = require_plain
        self._recording = recording
        self._spoken_turn = spoken_turn

    def read(self, message: Any, where: str) -> dict[str, Any]:
        """The message to send on. It decodes recordings, so it does not belong on the event loop.

        Raises:
            BadRequest: it is no message, or text in it names a control token.
            UnsupportedMedia, UnusableAudio: a recording that `recording` refuses.
        """
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise BadRequest(f"{where} must be an object with a role and a content", param=where)
        role = message["role"]
        self._require_plain(role, f"{where}.role")
        spoken = self._spoken(message.get("tts_content"), role, f"{where}.tts_content")
        content = self._content(message.get("content"), role, f"{where}.content")
        written: dict[str, Any] = {"role": role, "content": [*spoken, *as_parts(content)] if spoken else content}
        if message.get("tool_calls"):
            written["tool_calls"] = self._tool_calls(message["tool_calls"], f"{where}.tool_calls")
        if message.get("tool_call_id") is not None:
            written["tool_call_id"] = self._name(message["tool_call_id"], f"{where}.tool_call_id")
        return written

    def _spoken(self, tts_content: Any, role: str, where: str) -> list[Part]:
        """What was said comes before the written content, as the model wrote it."""
        if tts_content is None:
            return []
        if role != "assistant":
            raise BadRequest(
                f"{where} came with the role {role[:40]!r}; only an assistant's message has it", param=where
            )
        return [self._add(self._spoken_turn(tts_content, where))]

    def _add(self, item: AudioItem) -> Part:
        self.items.append(item)
        return item.part()

    def _content(self, content: Any, role: str, where: str) -> str | list[Part] | None:
        """Text parts that touch become one: the chat format puts nothing between them, so a name could hide there."""
        parts: list[str | Part]
        if content is None or isinstance(content, str):
            parts = [content or ""]
        elif isinstance(content, list):
            between = "\n" if role == "tool" else ""  # vLLM joins the parts of a tool's result with newlines
            parts = list(joined_text(self._parts(content, where), between))
        else:
            raise BadRequest(f"{where} must be a string or a list of parts", param=where)
        if role != "assistant":  # what the model wrote, control tokens included, may come back as its history
            for text in (part for part in parts if isinstance(part, str)):
                self._require_plain(text, where)
        if content is None or isinstance(content, str):
            return content
        return [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts]

    def _parts(self, content: list[Any], where: str) -> Iterator[str | Part]:
        for index, part in enumerate(content):
            here = f"{where}[{index}]"
            kind = part.get("type") if isinstance(part, dict) else None
            if isinstance(part, str):
                yield part
            elif isinstance(kind, str) and kind in TEXT_KEYS:
                text = part.get(TEXT_KEYS[kind])
                if not isinstance(text, str):
                    raise BadRequest(f"{here}.{TEXT_KEYS[kind]} must be a string", param=here)
                yield text
            elif kind == "input_audio":
                # side by side, with nothing between them, several items are heard as the one recording they are
                yield from map(self._add, self._recording(sound_in(part, here)))
            else:
                raise BadRequest(
                    f"{here} is of type {str(kind)[:40]!r}; send text, or sound as "
                    '{"type": "input_audio", "input_audio": {"data": BASE64, "format": "wav"}}',
                    param=here,
                )

    def _tool_calls(self, calls: Any, where: str) -> list[dict[str, Any]]:
        if not isinstance(calls, list):
            raise BadRequest(f"{where} must be a list", param=where)
        return [self._tool_call(call, f"{where}[{index}]") for index, call in enumerate(calls)]

    def _tool_call(self, call: Any, where: str) -> dict[str, Any]:
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict):
            raise BadRequest(f"{where} must be an object with a function", param=where)
        arguments = function.get("arguments", "")
        self._check_arguments(arguments, f"{where}.function.arguments")
        return {
            "id": self._name(call.get("id", ""), f"{where}.id"),
            "type": "function",
            "function": {"name": self._name(function.get("name"), f"{where}.function.name"), "arguments": arguments},
        }

    def _check_arguments(self, arguments: Any, where: str) -> None:
        """Both as they came and as the chat format writes them, with every escape undone."""
        if isinstance(arguments, str):
            self._require_plain(arguments, where)
        try:
            read = json.loads(arguments) if isinstance(arguments, str) else arguments
            written = json.dumps(read, ensure_ascii=False)
        except ValueError:
            return
        except RecursionError as error:
            raise BadRequest(f"{where} are nested too deeply; send flatter ones", param=where) from error
        self._require_plain(written, where)

    def _name(self, value: Any, where: str) -> str:
        if not isinstance(value, str):
            raise BadRequest(f"{where} must be a string", param=where)
        self._require_plain(value, where)
        return value


def as_parts(content: str | list[Part] | None) -> list[Part]:
    if isinstance(content, list):
        return content
    return [{"type": "text", "text": content}] if content else []


def sound_in(part: Part, where: str) -> bytes:
    """The recording of an `input_audio` part, as it was uploaded."""
    given = part.get("input_audio")
    data = given.get("data") if isinstance(given, dict) else None
    if not isinstance(data, str):
        raise BadRequest(f"{where}.input_audio.data must be the recording as base64", param=where)
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadRequest(f"{where}.input_audio.data is not base64: {error}", param=where) from error


def joined_text(parts: Iterator[str | Part], between: str) -> Iterator[str | Part]:
    """The parts with neighbouring texts made one."""
    text: str | None = None
    for part in parts:
        if isinstance(part, str):
            text = part if text is None else text + between + part
            continue
        if text is not None:
            yield text
            text = None
        yield part
    if text is not None:
        yield text
