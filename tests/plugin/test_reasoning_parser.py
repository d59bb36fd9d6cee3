"""Thought and answer of a reply, whole and in portions, through the class that vLLM itself loads and drives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from golden_folders import DATA
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.parser import ParserManager
from vllm.reasoning import ReasoningParserManager

import step_audio_vllm
from step_audio_vllm.siblings import REASONING_PARSER, TOOL_PARSER
from step_audio_vllm.thoughts import ThoughtReader, split_thought

OPENINGS = ["\n<think>\n", "<think>\n", "<think>"]
THINKING = {"enable_thinking": True}
REPLY = "They greet me.\nI could\n\nsing </thin. </think>\n\n\n你好, a</think>b <tool_call>"
THOUGHT, ANSWER = "They greet me.\nI could\n\nsing </thin. ", "你好, a</think>b <tool_call>"

texts = st.text(alphabet="</think>\nab", max_size=40)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    step_audio_vllm.register()
    return AutoTokenizer.from_pretrained(DATA / "llm" / "checkpoint")


def parser(tokenizer: PreTrainedTokenizerBase, **template_kwargs: Any) -> Any:
    parser_class = ReasoningParserManager.get_reasoning_parser(REASONING_PARSER)
    return parser_class(tokenizer, chat_template_kwargs=template_kwargs, model_config=None)


def request(*messages: dict[str, Any], **fields: Any) -> ChatCompletionRequest:
    asked = [{"role": "user", "content": "Hi"}, *messages]
    return ChatCompletionRequest.model_validate({"model": "m", "messages": asked, **fields})


def continued(content: Any) -> ChatCompletionRequest:
    turn = {"role": "assistant", "content": content}
    return request(turn, continue_final_message=True, add_generation_prompt=False)


def prompt(turn: str) -> str:
    return f"<|BOT|>human\nHi <think> there<|EOT|><|BOT|>assistant\n{turn}"


def stream(
    tokenizer: PreTrainedTokenizerBase, prompt_text: str, portions: Sequence[str], **template_kwargs: Any
) -> tuple[str, str]:
    """Reasoning and content that vLLM's own driver of the parsers sends for a reply in these portions."""
    driver = ParserManager.get_parser(reasoning_parser_name=REASONING_PARSER)(
        tokenizer, None, chat_template_kwargs=template_kwargs
    )
    prompt_ids, sent = tokenizer.encode(prompt_text), {"reasoning": "", "content": ""}
    for place, text in enumerate(portions):
        delta = driver.parse_delta(
            text, tokenizer.encode(text), request(), prompt_ids, finished=place == len(portions) - 1
        )
        for field in sent:
            sent[field] += (getattr(delta, field) if delta else None) or ""
    return sent["reasoning"], sent["content"]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize("opening", OPENINGS)
def test_a_streamed_reply_is_parted_as_the_whole_one_wherever_it_is_cut(
    opening: str, size: int, tokenizer: PreTrainedTokenizerBase
) -> None:
    portions = [REPLY[at : at + size] for at in range(0, len(REPLY), size)]
    assert stream(tokenizer, prompt(opening), portions, **THINKING) == (THOUGHT, ANSWER)
    assert parser(tokenizer, **THINKING).extract_reasoning(REPLY, request()) == (THOUGHT, ANSWER)


@given(pieces=st.lists(texts, max_size=8))
def test_portions_make_the_same_two_texts_as_the_whole(pieces: list[str]) -> None:
    reader, thought, answer = ThoughtReader(), "", ""
    for piece in pieces:
        more_thought, more_answer = reader.feed(piece)
        thought, answer = thought + more_thought, answer + more_answer
    assert (thought + reader.finish(), answer) == split_thought("".join(pieces))
    assert reader.answering == bool(answer)


@pytest.mark.parametrize("content", [*OPENINGS, "\n<think>\nThey gre", [{"type": "text", "text": "\n<think>\n"}]])
def test_a_client_may_open_the_thought_itself(content: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    plain = parser(tokenizer)
    assert plain.extract_reasoning(REPLY, continued(content)) == (THOUGHT, ANSWER)
    text = content if isinstance(content, str) else content[0]["text"]
    assert stream(tokenizer, prompt(text), list(REPLY)) == (THOUGHT, ANSWER)


def test_after_a_thought_that_the_client_closed_all_is_the_answer(tokenizer: PreTrainedTokenizerBase) -> None:
    turn, reply = "\n<think>\nhm</think>\n\n<tts_start>", "\nHello<audio_7></think>"
    assert parser(tokenizer, **THINKING).extract_reasoning(reply, continued(turn)) == (None, reply)
    assert stream(tokenizer, prompt(turn), [reply[:3], reply[3:]], **THINKING) == ("", reply)


@pytest.mark.parametrize("told", [{}, {"enable_thinking": False}])
def test_without_thinking_all_is_content(told: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> None:
    assert parser(tokenizer, **told).extract_reasoning(REPLY, request()) == (None, REPLY)
    assert stream(tokenizer, prompt(""), [REPLY[:9], REPLY[9:]], **told) == ("", REPLY)


def test_a_thought_that_never_ends_is_no_content(tokenizer: PreTrainedTokenizerBase) -> None:
    assert parser(tokenizer, **THINKING).extract_reasoning("They greet", request()) == ("They greet", None)
    assert stream(tokenizer, prompt("<think>"), ["They ", "greet"], **THINKING) == ("They greet", "")


def test_a_thought_that_is_cut_off_inside_its_end_keeps_every_letter(tokenizer: PreTrainedTokenizerBase) -> None:
    assert stream(tokenizer, prompt("<think>"), list("They </thin"), **THINKING) == ("They </thin", "")
    assert parser(tokenizer, **THINKING).extract_reasoning("They </thin", request()) == ("They </thin", None)


@pytest.mark.parametrize("size", [1, 4, 1000])
def test_calls_are_looked_for_in_the_answer_alone(size: int, tokenizer: PreTrainedTokenizerBase) -> None:
    call = "<tool_call>function\nlook\n{}</tool_call>"
    reply = f"I'd {call}</think>\n\nLook: {call}"
    tools = [{"type": "function", "function": {"name": "look", "parameters": {}}}]
    asked = request(tools=tools, tool_choice="auto")
    portions = [reply[at : at + size] for at in range(0, len(reply), size)]
    driver = ParserManager.get_parser(
        reasoning_parser_name=REASONING_PARSER, tool_parser_name=TOOL_PARSER, enable_auto_tools=True
    )(tokenizer, asked.tools, chat_template_kwargs=THINKING)
    prompt_ids, reasoning, content, names = tokenizer.encode(prompt("<think>")), "", "", []
    for place, text in enumerate(portions):
        finished = place == len(portions) - 1
        delta = driver.parse_delta(text, tokenizer.encode(text), asked, prompt_ids, finished=finished)
        reasoning += (delta and delta.reasoning) or ""
        content += (delta and delta.content) or ""
        names += [call.function.name for call in (delta and delta.tool_calls) or [] if call.function.name]
    assert (reasoning, content, names) == (f"I'd {call}", "Look: ", ["look"])


def test_a_thought_without_words_is_none(tokenizer: PreTrainedTokenizerBase) -> None:
    assert parser(tokenizer, **THINKING).extract_reasoning("</think>\n\n", request()) == (None, None)


@pytest.mark.parametrize(
    ("turn", "ended"), [*((opening, False) for opening in OPENINGS), ("", True), ("<think>a</think>\n\n", True)]
)
def test_the_last_turn_of_a_prompt_says_whether_a_thought_is_open(
    turn: str, ended: bool, tokenizer: PreTrainedTokenizerBase
) -> None:
    assert parser(tokenizer).is_reasoning_end(tokenizer.encode(prompt(turn))) is ended


def test_a_prompt_without_turns_has_no_open_thought(tokenizer: PreTrainedTokenizerBase) -> None:
    assert parser(tokenizer).is_reasoning_end([])
    assert parser(tokenizer).is_reasoning_end(tokenizer.encode("Once upon a time"))


def test_the_engine_sees_the_step_in_which_a_thought_ends(tokenizer: PreTrainedTokenizerBase) -> None:
    """It has ids alone, of prompt and reply, and asks once for each step."""
    before = tokenizer.encode(prompt("a</think>").replace("assistant", "human") + prompt("\n<think>\n"))
    after = tokenizer.encode("hm") + [tokenizer.encode(letter)[0] for letter in "</think>"] + tokenizer.encode("\n\n{")
    engine = parser(tokenizer, **THINKING)
    ids = before + after
    seen = [
        engine.is_reasoning_end_streaming(ids[: at + 1], iter(ids[at : at + 1])) for at in range(len(before), len(ids))
    ]
    assert seen.index(True) == len(after) - 1 - len(tokenizer.encode("\n\n{"))
    assert engine.is_reasoning_end_streaming(ids, iter(after)), "several tokens in one step"


def test_the_answer_s_ids_follow_the_tag(tokenizer: PreTrainedTokenizerBase) -> None:
    ids, answer = tokenizer.encode("hm</think>"), tokenizer.encode(" a</think>")
    assert parser(tokenizer).extract_content_ids(ids + answer) == answer
    assert parser(tokenizer).extract_content_ids(ids) == []
    assert parser(tokenizer).extract_content_ids(tokenizer.encode("hm")) == []


def test_speech_padding_and_ids_without_a_token_are_survived(tokenizer: PreTrainedTokenizerBase) -> None:
    assert parser(tokenizer).is_reasoning_end([*range(700, 1000), 7423])
    assert not parser(tokenizer).is_reasoning_end_streaming([7423], [7423])
