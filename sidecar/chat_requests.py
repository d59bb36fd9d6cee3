"""Chat and completion bodies on their way to the language model's own server: parsed, checked, made safe.

Messages are written anew from the fields that are known, so nothing unseen travels on; every other field of the body
passes as it came, apart from those that would change how the engine reads a request.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from sidecar.errors import BadRequest
from sidecar.json_body import json_object

#: What a part of text calls its text, by the part's type.
TEXT_KEYS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}

#: Fields that reach past the chat format or into the engine's memory.
REFUSED_FIELDS = (
    "chat_template",
    "chat_template_kwargs",
    "documents",
    "mm_processor_kwargs",
    "media_io_kwargs",
    "prompt_embeds",
    "kv_transfer_params",
    "ec_transfer_params",
    "vllm_xargs",
)
#: A prompt cut at a token count may lose half of a recording's placeholders.
REFUSED_CHAT_FIELDS = (*REFUSED_FIELDS, "truncate_prompt_tokens")


@dataclass(frozen=True)
class ChatReader:
    """Reads the bodies of `POST /v1/chat/completions`.

    Args:
        require_plain: text and the name of its field; raises BadRequest for text that names a control token.
        reencode: an uploaded recording -> 16 kHz mono PCM16 wav; raises for what cannot be used.
        max_text_characters: in one message that the model did not write.
    """

    require_plain: Callable[[str, str], None]
    reencode: Callable[[bytes], bytes]
    max_text_characters: int

    def read(self, body: bytes) -> dict[str, Any]:
        """The body to send on. It decodes recordings, so it does not belong on the event loop.

        Raises:
            BadRequest: the body is not a chat body, a field is refused, or text names a control token.
            UnsupportedMedia, UnusableAudio: a recording that `reencode` refuses.
        """
        chat = json_object(body)
        refuse_fields(chat, REFUSED_CHAT_FIELDS)
        messages = chat.get("messages")
        if not isinstance(messages, list) or not messages:
            raise BadRequest("messages must be a list with at least one message", param="messages")
        chat["messages"] = [self._message(message, f"messages[{index}]") for index, message in enumerate(messages)]
        if chat.get("tools") is not None:
            # as the chat format writes them: names, descriptions and schemas, keys too
            self.require_plain(json.dumps(chat["tools"], ensure_ascii=False), "tools")
        return chat

    def _message(self, message: Any, where: str) -> dict[str, Any]:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise BadRequest(f"{where} must be an object with a role and a content", param=where)
        role = message["role"]
        self.require_plain(role, f"{where}.role")
        written: dict[str, Any] = {"role": role, "content": self._content(message.get("content"), role, where)}
        if message.get("tool_calls"):
            written["tool_calls"] = self._tool_calls(message["tool_calls"], f"{where}.tool_calls")
        if message.get("tool_call_id") is not None:
            written["tool_call_id"] = self._name(message["tool_call_id"], f"{where}.tool_call_id")
        return written

    def _content(self, content: Any, role: str, where: str) -> str | list[dict[str, Any]] | None:
        """Text parts that touch become one: the chat format puts nothing between them, so a name could hide there."""
        where = f"{where}.content"
        parts: list[str | dict[str, Any]]
        if content is None or isinstance(content, str):
            parts = [content or ""]
        elif isinstance(content, list):
            between = "\n" if role == "tool" else ""  # vLLM joins the parts of a tool's result with newlines
            parts = list(joined_text(self._parts(content, where), between))
        else:
            raise BadRequest(f"{where} must be a string or a list of parts", param=where)
        if role != "assistant":  # what the model wrote, control tokens included, may come back as its history
            self._check_text([part for part in parts if isinstance(part, str)], where)
        if content is None or isinstance(content, str):
            return content
        return [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts]

    def _check_text(self, texts: list[str], where: str) -> None:
        characters = sum(map(len, texts))
        if characters > self.max_text_characters:
            raise BadRequest(
                f"{where} has {characters} characters; at most {self.max_text_characters} are allowed", param=where
            )
        for text in texts:
            self.require_plain(text, where)

    def _parts(self, content: list[Any], where: str) -> Iterator[str | dict[str, Any]]:
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
                yield self._recording(part, here)
            else:
                raise BadRequest(
                    f"{here} is of type {str(kind)[:40]!r}; send text, or sound as "
                    '{"type": "input_audio", "input_audio": {"data": BASE64, "format": "wav"}}',
                    param=here,
                )

    def _recording(self, part: dict[str, Any], where: str) -> dict[str, Any]:
        given = part.get("input_audio")
        data = given.get("data") if isinstance(given, dict) else None
        if not isinstance(data, str):
            raise BadRequest(f"{where}.input_audio.data must be the recording as base64", param=where)
        try:
            recording = base64.b64decode(data, validate=True)
        except (binascii.Error, ValueError) as error:
            raise BadRequest(f"{where}.input_audio.data is not base64: {error}", param=where) from error
        wav = base64.b64encode(self.reencode(recording)).decode("ascii")
        return {"type": "input_audio", "input_audio": {"data": wav, "format": "wav"}}

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
            self.require_plain(arguments, where)
            try:
                arguments = json.loads(arguments)
            except (ValueError, RecursionError):
                return
        self.require_plain(json.dumps(arguments, ensure_ascii=False), where)

    def _name(self, value: Any, where: str) -> str:
        if not isinstance(value, str):
            raise BadRequest(f"{where} must be a string", param=where)
        self.require_plain(value, where)
        return value


def read_completion(body: bytes) -> dict[str, Any]:
    """The body of `POST /v1/completions` to send on.

    Its prompt is raw by design - ids, or text that writes its own turns - so control tokens are the caller's to use.

    Raises:
        BadRequest: it is no JSON object, or has a refused field.
    """
    completion = json_object(body)
    refuse_fields(completion, REFUSED_FIELDS)
    return completion


def joined_text(parts: Iterator[str | dict[str, Any]], between: str) -> Iterator[str | dict[str, Any]]:
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


def refuse_fields(body: dict[str, Any], names: tuple[str, ...]) -> None:
    for name in names:
        if body.get(name) is not None:
            raise BadRequest(f"{name} is not accepted by this server; remove it", param=name, code="field_not_accepted")
