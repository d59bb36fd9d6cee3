"""A chat that asks for speech: how it is asked of the engine, and what of it cannot be given.

Speech is asked for by an open last turn that ends with `<tts_start>`. The engine's text of the reply is of no use then,
since names of speech tokens stand all over it: ids are asked for, and text, speech and tool calls are read from them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sidecar.engine.splitter import Splitter
from sidecar.engine.text import TextTokenizer
from sidecar.errors import BadRequest
from step_audio_vllm.tool_calls import ToolCall, ToolCallReader, read_tool_calls
from step_audio_vllm.vocabulary import TTS_START

#: Fields that are about the engine's text, and why each cannot hold for speech.
REFUSED = {
    "logprobs": "they belong to single tokens, of which a spoken reply shows none",
    "top_logprobs": "they belong to single tokens, of which a spoken reply shows none",
    "prompt_logprobs": "they belong to single tokens, of which a spoken reply shows none",
    "echo": "the reply begins in the middle of a speech section",
    "stop": "words are looked for where names of speech tokens stand between them; stop_token_ids works",
    "structured_outputs": "a grammar would keep the model from speaking",
    "use_beam_search": "beams are compared by text and speech together",
}
PLAIN_FORMATS = (None, "text")
TOOL_CHOICES = (None, "auto", "none")


@dataclass(frozen=True)
class SpeechChat:
    """The body for the engine, and how its answer is to be read."""

    body: dict[str, Any]
    looks_for_calls: bool
    offered: frozenset[str]
    one_call_alone: bool
    more_stop_ids: frozenset[int]
    wants_ids: bool

    def splitter(self, text: TextTokenizer) -> Splitter:
        """For one choice, whole or streamed; only where it is streamed does it look for calls."""
        reader = ToolCallReader(self.offered) if self.looks_for_calls and self.streamed else None
        return Splitter(
            text.vocabulary,
            text.token_bytes,
            in_speech=True,
            stop_ids=text.vocabulary.stop_ids | self.more_stop_ids,
            tool_calls=reader,
        )

    def read_calls(self, content: str) -> tuple[str | None, list[ToolCall]]:
        """Of a whole content; None stands for an empty one."""
        rest, calls = read_tool_calls(content, self.offered) if self.looks_for_calls else (content or None, [])
        return rest, calls[:1] if self.one_call_alone else calls

    @property
    def streamed(self) -> bool:
        return bool(self.body.get("stream"))


def opens_speech(chat: dict[str, Any]) -> bool:
    """Whether the reply to this chat continues a turn that has just begun to speak."""
    last = chat["messages"][-1]
    content = last.get("content")
    if isinstance(content, list) and content:
        content = content[-1].get("text")
    return (
        chat.get("continue_final_message") is True
        and chat.get("add_generation_prompt") is False
        and last["role"] == "assistant"
        and isinstance(content, str)
        and content.endswith(TTS_START)
    )


def speech_chat(chat: dict[str, Any]) -> SpeechChat:
    """How to ask the engine for it.

    Raises:
        BadRequest: it wants what a spoken reply cannot have.
    """
    _refuse_what_cannot_be(chat)
    tools = chat.get("tools") or []
    body = {
        **chat,
        "return_token_ids": True,
        "skip_special_tokens": False,
        # a reasoning parser of the engine would keep back the ids of what it hides
        "include_reasoning": True,
    }
    if tools:
        # they stay in the prompt, and the engine's parser, which reads text, is left out
        body["tool_choice"] = "none"
    return SpeechChat(
        body=body,
        looks_for_calls=bool(tools) and chat.get("tool_choice") != "none",
        offered=frozenset(_names(tools)),
        one_call_alone=chat.get("parallel_tool_calls") is False,
        more_stop_ids=frozenset(_integers(chat.get("stop_token_ids"))),
        wants_ids=bool(chat.get("return_token_ids")),
    )


def _refuse_what_cannot_be(chat: dict[str, Any]) -> None:
    if chat.get("stream") not in (None, True, False):  # vLLM takes words for it too, and the answer is read by it
        raise BadRequest("stream must be true or false", param="stream")
    for field, reason in REFUSED.items():
        if chat.get(field):
            raise BadRequest(
                f"{field} cannot be given for a reply in speech: {reason}; remove it, or ask for text",
                param=field,
                code="not_in_speech",
            )
    form = chat.get("response_format")
    if (form.get("type") if isinstance(form, dict) else form) not in PLAIN_FORMATS:
        raise BadRequest(
            "response_format cannot be given for a reply in speech: a grammar would keep the model from speaking; "
            "remove it, or ask for text",
            param="response_format",
            code="not_in_speech",
        )
    if chat.get("tool_choice") not in TOOL_CHOICES:
        raise BadRequest(
            "tool_choice cannot be forced for a reply in speech, which begins with words and not with a call; "
            "send auto or none",
            param="tool_choice",
            code="not_in_speech",
        )


def _names(tools: Any) -> list[str]:
    """What is no tool is left for the engine to refuse."""
    functions = [tool.get("function") for tool in tools if isinstance(tool, dict)] if isinstance(tools, list) else []
    names = [function.get("name") for function in functions if isinstance(function, dict)]
    return [name for name in names if isinstance(name, str)]


def _integers(given: Any) -> list[int]:
    return [number for number in given if isinstance(number, int)] if isinstance(given, list) else []
