"""Chat and completion bodies on their way to the language model's own server: parsed, checked, made safe.

Messages are written anew; every other field of the body passes as it came, apart from those that would change how the
engine reads a request.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sidecar.chat_messages import AudioItem, MessageReader
from sidecar.errors import BadRequest
from sidecar.json_body import json_object

#: Fields that reach past the chat format or into the engine's memory.
REFUSED_FIELDS = (
    "chat_template",
    "documents",
    "mm_processor_kwargs",
    "media_io_kwargs",
    "prompt_embeds",
    "kv_transfer_params",
    "ec_transfer_params",
    "vllm_xargs",
)
#: What the chat format itself offers to a client, of a model that thinks before it answers.
TEMPLATE_FIELDS = {"enable_thinking": bool, "thinking_prefill": str}
#: A prompt cut at a token count may lose half of a recording's placeholders.
REFUSED_CHAT_FIELDS = (*REFUSED_FIELDS, "truncate_prompt_tokens")


@dataclass(frozen=True)
class ChatRequest:
    """The body to send on, and the audio items in its messages."""

    body: dict[str, Any]
    items: tuple[AudioItem, ...] = ()


@dataclass(frozen=True)
class ChatReader:
    """Reads the bodies of `POST /v1/chat/completions`; what it is handed is `MessageReader`'s."""

    require_plain: Callable[[str, str], None]
    recording: Callable[[bytes], list[AudioItem]]
    spoken_turn: Callable[[Any, str], AudioItem]

    def read(self, body: bytes) -> ChatRequest:
        """It decodes recordings, so it does not belong on the event loop.

        Raises:
            BadRequest: the body is not a chat body, a field is refused, or text names a control token.
            UnsupportedMedia, UnusableAudio: a recording that `recording` refuses.
        """
        chat = json_object(body)
        refuse_fields(chat, REFUSED_CHAT_FIELDS)
        check_template_fields(chat.get("chat_template_kwargs"))
        messages = chat.get("messages")
        if not isinstance(messages, list) or not messages:
            raise BadRequest("messages must be a list with at least one message", param="messages")
        reader = MessageReader(
            require_plain=self.require_plain,
            recording=self.recording,
            spoken_turn=self.spoken_turn,
        )
        chat["messages"] = [reader.read(message, f"messages[{index}]") for index, message in enumerate(messages)]
        if chat.get("continue_final_message"):
            refuse_open_sound(chat["messages"][-1])
        if chat.get("tools") is not None:
            # as the chat format writes them: names, descriptions and schemas, keys too
            self.require_plain(json.dumps(chat["tools"], ensure_ascii=False), "tools")
        return ChatRequest(chat, tuple(reader.items))


def read_completion(body: bytes) -> dict[str, Any]:
    """The body of `POST /v1/completions` to send on.

    Its prompt is raw by design - ids, or text that writes its own turns - so control tokens are the caller's to use.

    Raises:
        BadRequest: it is no JSON object, or has a refused field.
    """
    completion = json_object(body)
    refuse_fields(completion, REFUSED_FIELDS)
    return completion


def refuse_open_sound(message: dict[str, Any]) -> None:
    """An open message is cut behind its last text, so sound at its end would lose its place in the prompt."""
    content = message["content"]
    if isinstance(content, list) and content and content[-1]["type"] != "text":
        raise BadRequest(
            "continue_final_message: the last message ends with sound, and only text can be continued; end it with "
            "text, or close it and let add_generation_prompt open the reply",
            param="continue_final_message",
        )


def check_template_fields(given: Any) -> None:
    """Any other field could take the place of what the template is handed, messages and tools among it."""
    fields = given if isinstance(given, dict) else {"": given}
    if given is not None and any(not isinstance(value, TEMPLATE_FIELDS.get(key, ())) for key, value in fields.items()):
        raise BadRequest(
            "chat_template_kwargs may have enable_thinking, true or false, and thinking_prefill, a text; "
            "remove anything else",
            param="chat_template_kwargs",
            code="field_not_accepted",
        )


def refuse_fields(body: dict[str, Any], names: tuple[str, ...]) -> None:
    for name in names:
        if body.get(name) is not None:
            raise BadRequest(f"{name} is not accepted by this server; remove it", param=name, code="field_not_accepted")
