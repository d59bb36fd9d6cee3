"""vLLM tool parser `step_audio_2`: tool calls out of a reply's text, whole and streamed, after speech too.

vLLM gives parsers text in which every token is spelled out. Speech sections are taken out first, since neither
`<audio_12>` nor the spoken words belong to the written reply; calls are looked for in the rest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vllm.tool_parsers.abstract_tool_parser import ExtractedToolCallInformation, ToolParser

from step_audio_vllm.compat import delta_message
from step_audio_vllm.reply_text import ReplyText
from step_audio_vllm.tool_calls import ToolCallDelta, ToolCallReader, read_tool_calls
from step_audio_vllm.vocabulary import TOOL_CALL_END, TOOL_CALL_START, TTS_START


class StepAudio2ToolParser(ToolParser):
    """One reply's parser; vLLM asks it only where the request allows a call.

    Without a call the content is the reply's text, speech sections taken out; what is not a good call stays text.

    Args:
        tokenizer, tools: what vLLM makes every parser with; the request's tools come again with each reply.
    """

    def __init__(self, tokenizer: Any, tools: Any = None, **_: Any) -> None:
        super().__init__(tokenizer, tools)
        self._text: ReplyText | None = None
        self._calls: ToolCallReader | None = None

    def adjust_request(self, request: Any) -> Any:
        """Keep the tags in the text, should the tokenizer call them special."""
        request = super().adjust_request(request)
        if request.tools and request.tool_choice != "none":
            request.skip_special_tokens = False
        return request

    def extract_tool_calls(self, model_output: str, request: Any, **_: Any) -> ExtractedToolCallInformation:
        """A whole reply -> its content and calls."""
        reader = written_text(request)
        text = reader.feed(model_output) + reader.finish()
        content, calls = read_tool_calls(text, offered_names(request))
        return ExtractedToolCallInformation(
            # vLLM gives the model's own output for content unless this is true, speech and all
            tools_called=bool(calls) or text != model_output,
            tool_calls=[call.as_openai() for call in calls],
            content=content,
        )

    def extract_tool_calls_streaming(
        self,
        previous_text: str,
        current_text: str,
        delta_text: str,
        previous_token_ids: Sequence[int],
        current_token_ids: Sequence[int],
        delta_token_ids: Sequence[int],
        request: Any,
        **_: Any,
    ) -> Any:
        """What a portion adds to content and calls, or None if nothing is certain yet."""
        if self._text is None or self._calls is None:
            self._text, self._calls = written_text(request), ToolCallReader(offered_names(request))
            # whoever says so before the end is asked to `finish_streaming`; said at the start, it would also change
            # how vLLM reads the replies to a forced call, in which this parser has no part
            self.engine_based_streaming = True
        return reply_delta(*self._calls.feed(self._text.feed(delta_text)))

    def finish_streaming(self) -> Any:
        """What was held back, when vLLM has seen the end of the reply."""
        if self._text is None or self._calls is None:
            return None
        content, calls = self._calls.feed(self._text.finish())
        rest, more = self._calls.finish()
        return reply_delta(content + rest, calls + more)


def written_text(request: Any) -> ReplyText:
    """Takes speech out of the reply; that begins inside a speech section if the request's last message opens one."""
    return ReplyText(
        speaking=bool(getattr(request, "continue_final_message", False))
        and last_text(request.messages[-1]).endswith(TTS_START),
        keep=(TOOL_CALL_START, TOOL_CALL_END),
    )


def last_text(message: Mapping[str, Any]) -> str:
    """The text that a chat message ends with; "" where it ends with none."""
    content = message.get("content")
    last = content[-1] if isinstance(content, list) and content else content
    text = last.get("text") if isinstance(last, Mapping) else last
    return text if isinstance(text, str) else ""


def offered_names(request: Any) -> set[str] | None:
    """Names of the request's functions; None where it lists no tools.

    The responses API has them without a `function` around, and knows tools that are no functions and have no name.
    """
    if not request.tools:
        return None
    functions = [getattr(tool, "function", tool) for tool in request.tools]
    return {function.name for function in functions if hasattr(function, "name")}


def reply_delta(content: str, calls: list[ToolCallDelta]) -> Any:
    """A portion of vLLM's streamed reply; None where there is nothing in it."""
    fields: dict[str, Any] = {}
    if content:
        fields["content"] = content
    if calls:
        fields["tool_calls"] = [piece.as_openai() for piece in calls]
    return delta_message(**fields) if fields else None
