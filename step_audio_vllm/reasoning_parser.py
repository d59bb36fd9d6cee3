"""vLLM reasoning parser `step_audio_2`: the thought of Step-Audio-2-mini-Think apart from its answer.

`<think>` and `</think>` are ordinary text that may be cut into tokens anyhow, so everything here reads text. Whether a
reply begins inside a thought is decided by the prompt alone: the template's prefill, or the client's own with
`continue_final_message`. Where it has opened none, the whole reply is content.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from typing_extensions import override
from vllm.reasoning import ReasoningParser

from step_audio_vllm.compat import delta_message
from step_audio_vllm.thoughts import THOUGHT_END, THOUGHT_START, ThoughtReader, is_open, split_thought
from step_audio_vllm.vocabulary import BEGIN_OF_TURN


class StepAudio2ReasoningParser(ReasoningParser):
    """One request's parser, in vLLM's API process for its reply, in the engine for structured output.

    Args:
        tokenizer: decodes prompt and reply.
        chat_template_kwargs: what the request's template was told, the server's defaults included.
    """

    def __init__(self, tokenizer: Any, *others: Any, **keywords: Any) -> None:
        super().__init__(tokenizer, *others, **keywords)
        told: Mapping[str, Any] = keywords.get("chat_template_kwargs") or {}
        self._thinks = bool(told.get("enable_thinking"))
        self._begins_inside = self._thinks
        self._reader: ThoughtReader | None = None

    @property
    def reasoning_start_str(self) -> str:
        return THOUGHT_START

    @property
    def reasoning_end_str(self) -> str:
        return THOUGHT_END

    def is_reasoning_end(self, input_ids: Sequence[int]) -> bool:
        """Whether a reply to this prompt begins with its answer: the turn it continues has no open thought."""
        return not is_open(self._last_turn(list(input_ids)))

    def is_reasoning_end_streaming(self, input_ids: Sequence[int], delta_ids: Iterable[int]) -> bool:
        """Whether the thought of this reply has ended with the newest ids; the engine asks, which has no text."""
        # the tag's letters are a token each at most
        newest = list(input_ids[-(len(list(delta_ids)) + len(THOUGHT_END)) :])
        return THOUGHT_END in self._last_turn(newest)

    def has_engine_confirmed_reasoning_end(self) -> bool:
        """Whether the answer has begun in the text of a stream."""
        return self._reader is not None and self._reader.answering

    def extract_content_ids(self, input_ids: list[int]) -> list[int]:
        """The ids after the one that completes `</think>`; none where it isn't among them as a whole."""
        ended = bisect_left(range(len(input_ids)), True, key=lambda at: THOUGHT_END in self._text(input_ids[: at + 1]))
        return input_ids[ended + 1 :]

    def adjust_initial_state_from_prompt(self, prompt_token_ids: Sequence[int]) -> None:
        """A stream begins; its prompt may have opened a thought that no setting speaks of."""
        self._begins_inside = not self.is_reasoning_end(prompt_token_ids)

    def extract_reasoning(self, model_output: str, request: Any) -> tuple[str | None, str | None]:
        """A whole reply -> thought and answer, None for what is not there."""
        if not self._opens_thought(request):
            return None, model_output
        thought, answer = split_thought(model_output)
        return thought or None, answer or None

    @override
    def extract_reasoning_streaming(
        self,
        previous_text: str,
        current_text: str,
        delta_text: str,
        previous_token_ids: Sequence[int],
        current_token_ids: Sequence[int],
        delta_token_ids: Sequence[int],
    ) -> Any:
        """What a portion adds to thought and answer, or None if nothing is certain yet."""
        if not self._begins_inside:
            return delta_message(content=delta_text)
        if self._reader is None:
            self._reader = ThoughtReader()
            # whoever says so is asked to `finish_streaming`; said for the class, it would also change how vLLM hands
            # text to the tool parser
            self.engine_based_streaming = True
        thought, answer = self._reader.feed(delta_text)
        return delta_message(reasoning=thought or None, content=answer or None) if thought or answer else None

    def finish_streaming(self) -> Any:
        """What was held back, when vLLM has seen the end of the reply or of the thought."""
        held = self._reader.finish() if self._reader is not None else ""
        return delta_message(reasoning=held) if held else None

    def _opens_thought(self, request: Any) -> bool:
        """Whether the request's prompt does. A whole reply comes without the prompt's ids, so the request is asked."""
        if getattr(request, "continue_final_message", False):
            return is_open(_text_of(request.messages[-1]))
        return self._thinks and bool(getattr(request, "add_generation_prompt", True))

    def _last_turn(self, ids: list[int]) -> str:
        return self._text(ids).rpartition(BEGIN_OF_TURN)[2]

    def _text(self, ids: Sequence[int]) -> str:
        return str(self.model_tokenizer.decode(list(ids), skip_special_tokens=False))


def _text_of(message: Mapping[str, Any]) -> str:
    """All text of a chat message."""
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return "".join(str(part.get("text", "")) for part in content)
