"""What was asked -> chat messages, and how many tokens they will be.

Both modes of /generate leave the last turn open after `<tts_start>`, which is what makes the model answer in speech.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from sidecar.chat_messages import AudioItem
from sidecar.engine.audio_items import longest_recording_s
from sidecar.engine.text import TextTokenizer
from sidecar.errors import BadRequest
from step_audio_vllm.vocabulary import (
    AUDIO_PATCH,
    BEGIN_OF_TURN,
    END_OF_TURN,
    TOOL_CALL_END,
    TOOL_CALL_START,
    TTS_START,
)

Message = dict[str, Any]


@dataclass(frozen=True)
class Prompt:
    """Chat messages in OpenAI's form, the audio items in them, and the tools that are offered."""

    messages: Sequence[Message]
    items: Sequence[AudioItem] = ()
    tools: Sequence[dict[str, Any]] = field(default=())
    ends_open: bool = True  # the last turn waits for the model to go on


def read_aloud(text: str, system_prompt: str) -> Prompt:
    """Text-to-speech: the system turn asks to read, the human turn is the text."""
    return Prompt([*system_turn(system_prompt), {"role": "user", "content": text}, open_speech_turn()])


def answer_recording(recording: Sequence[AudioItem], text: str, system_prompt: str) -> Prompt:
    """Speech-to-speech: a recording, then the instruction.

    Args:
        recording: its items, in order.
        text: may be empty.
        system_prompt: the system turn; empty for none.
    """
    content = [item.part() for item in recording]
    if text:
        content.append({"type": "text", "text": text})
    return Prompt([*system_turn(system_prompt), {"role": "user", "content": content}, open_speech_turn()], recording)


def chat_prompt(chat: dict[str, Any], items: Sequence[AudioItem]) -> Prompt:
    """The prompt of a chat body."""
    messages, open_already = list(chat["messages"]), bool(chat.get("continue_final_message"))
    asks = chat.get("add_generation_prompt") is not False and not open_already
    if asks:
        messages.append({"role": "assistant", "content": ""})
    return Prompt(messages, items, chat.get("tools") or (), ends_open=asks or open_already)


def system_turn(text: str) -> list[Message]:
    return [{"role": "system", "content": text}] if text else []


def open_speech_turn() -> Message:
    return {"role": "assistant", "content": TTS_START}


def count_prompt_tokens(prompt: Prompt, text: TextTokenizer) -> int:
    """How many ids the prompt will have in the engine, whose chat format `render` repeats."""
    return text.count(render(prompt)) + sum(item.prompt_tokens - 1 for item in prompt.items)


def render(prompt: Prompt) -> str:
    """The prompt as text, with one `<audio_patch>` for each audio item, as the chat template writes it."""
    messages, tools = prompt.messages, ""
    if prompt.tools:
        tools = f"{BEGIN_OF_TURN}tool_json_schemas\n{as_template_json(prompt.tools)}{END_OF_TURN}"
    turns = [_turn(message, messages[:place]) + END_OF_TURN for place, message in enumerate(messages)]
    if messages[0]["role"] == "system":
        turns.insert(1, tools)
    elif tools:
        turns.insert(0, f"{BEGIN_OF_TURN}system\n{tools}")
    whole = "".join(turns)
    return whole.removesuffix(END_OF_TURN) if prompt.ends_open else whole


def _turn(message: Message, earlier: Sequence[Message]) -> str:
    role = {"user": "human", "tool": "function_output"}.get(message["role"], message["role"])
    called = f"{_name_of_call(message.get('tool_call_id'), earlier)}\n" if message["role"] == "tool" else ""
    calls = "".join(map(_call, message.get("tool_calls") or ()))
    return f"{BEGIN_OF_TURN}{role}\n{called}{_content(message['content'])}{calls}"


def _content(content: str | list[dict[str, Any]] | None) -> str:
    if isinstance(content, list):
        return "".join(part["text"] if part["type"] == "text" else AUDIO_PATCH for part in content)
    return content or ""


def _call(call: Message) -> str:
    """Arguments are read and written again, as vLLM does on their way into the template."""
    arguments = call["function"]["arguments"]
    if isinstance(arguments, str):
        with suppress(ValueError):  # which the engine refuses
            arguments = json.loads(arguments or "{}")
    return f"{TOOL_CALL_START}function\n{call['function']['name']}\n{as_template_json(arguments)}{TOOL_CALL_END}"


def _name_of_call(call_id: str | None, earlier: Sequence[Message]) -> str:
    calls = [call for message in earlier for call in message.get("tool_calls") or ()]
    names = [call["function"]["name"] for call in calls if call_id and call["id"] == call_id]
    return names[-1] if names else "tool"


def as_template_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def require_room(prompt: Prompt, text: TextTokenizer, max_model_len: int) -> int:
    """Tokens that the context leaves for a reply, at least one.

    Raises:
        BadRequest: the prompt fills the context; says how long a recording may last beside the rest of it.
    """
    tokens = count_prompt_tokens(prompt, text)
    room = max_model_len - 1 - tokens
    if room >= 1:
        return room
    recorded = sum(item.prompt_tokens for item in prompt.items if item.is_recording)
    longest_s = longest_recording_s(max_model_len - 2 - (tokens - recorded))
    raise BadRequest(
        f"the request makes a prompt of {tokens} tokens, and {max_model_len} have to hold prompt and reply; "
        + (
            f"recordings in it may last {longest_s:.1f} s together: send less sound"
            if recorded and longest_s
            else "send a shorter text or conversation"
        ),
        code="context_length_exceeded",
    )
