"""Base and Think: recognised by name, and talked to in their own format, in plain vLLM and in transformers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from golden_folders import DATA
from jinja2.exceptions import TemplateError
from requests_with_audio import GREEDY, audio_item
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from vllm_server import VllmServer, serving

from step_audio_vllm import synthetic
from step_audio_vllm.siblings import CHAT_FORMATS, chat_format_name
from step_audio_vllm.vocabulary import Vocabulary

CHECKPOINT = DATA / "llm" / "checkpoint"
CASES = {case["name"]: case for case in json.loads((DATA / "llm" / "cases.json").read_text(encoding="utf-8"))["cases"]}
SNAPSHOT = "/home/me/.cache/huggingface/hub/models--stepfun-ai--{}/snapshots/2f1d3a"
TOOL = {"type": "function", "function": {"name": "look", "parameters": {}}}
THINK_FLAGS = (
    "--default-chat-template-kwargs", json.dumps(CHAT_FORMATS["think"].template_defaults),
    "--reasoning-parser", str(CHAT_FORMATS["think"].reasoning_parser),
)  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(CHECKPOINT)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmServer]:
    """The recorded checkpoint under Base's name: plain vLLM, told nothing of its format."""
    folder = tmp_path_factory.mktemp("base") / "Step-Audio-2-mini-Base"
    folder.symlink_to(CHECKPOINT, target_is_directory=True)
    with serving(folder, "--dtype", "float32") as server:
        yield server


@pytest.fixture(scope="module")
def think(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmServer]:
    """The synthetic checkpoint, which writes a thought where one is opened, under Think's name and flags."""
    folder = tmp_path_factory.mktemp("think") / "Step-Audio-2-mini-Think"
    synthetic.write_checkpoint(folder, "tiny")
    with serving(folder, *THINK_FLAGS) as server:
        yield server


def recorded_pieces() -> list[dict[str, Any]]:
    """The recorded raw prompt as content items."""
    pieces = [{"type": "text", "text": p} if isinstance(p, str) else p for p in CASES["raw_continuation"]["messages"]]
    audio = DATA / "llm" / "audio"
    return [audio_item((audio / p["audio"]).read_bytes()) if p["type"] == "audio" else p for p in pieces]


def as_said_in(pieces: list[dict[str, Any]], how: str) -> dict[str, Any]:
    """The same pieces as the messages of a chat request."""
    match how:
        case "one message":
            return {"messages": [{"role": "user", "content": pieces}]}
        case "several messages":
            return {"messages": [{"role": "user", "content": [piece]} for piece in pieces]}
        case _:
            messages = [{"role": "system", "content": pieces[0]["text"]}, {"role": "user", "content": pieces[1:-1]},
                        {"role": "assistant", "content": pieces[-1]["text"]}]  # fmt: skip
            return {"messages": messages, "add_generation_prompt": False, "continue_final_message": True}


def tokenized(server: VllmServer, body: dict[str, Any]) -> httpx.Response:
    return httpx.post(f"{server.base_url}/tokenize", json={"model": server.model, **body}, timeout=60)


def render(tokenizer: PreTrainedTokenizerBase, name: str, messages: list[Any], **options: Any) -> str:
    template = CHAT_FORMATS[name].template.read_text(encoding="utf-8")
    text: str = tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False, **options)
    return text


# The name


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("stepfun-ai/Step-Audio-2-mini", "mini"),
        ("stepfun-ai/Step-Audio-2-mini-Base", "base"),
        ("stepfun-ai/Step-Audio-2-mini-Think", "think"),
        ("/models/step-audio-2-mini-think/", "think"),
        ("Step-Audio-2-mini-Base-FP8", "base"),
        ("/models/mine_Base", "base"),
        (SNAPSHOT.format("Step-Audio-2-mini"), "mini"),
        (SNAPSHOT.format("Step-Audio-2-mini-Base"), "base"),
        (SNAPSHOT.format("Step-Audio-2-mini-Think"), "think"),
        ("/think/base", "mini"),
        ("/Step-Audio-2-mini-Think/checkpoint", "mini"),
        ("Step-Audio-2-mini-Thinker", "mini"),
        ("tiny", "mini"),
        ("", "mini"),
    ],
)
def test_the_last_part_of_a_name_says_the_format(model: str, name: str) -> None:
    assert chat_format_name(model) == name


# Think's prompt


@pytest.mark.vllm
def test_thinking_opens_the_turn_as_recorded(golden_server: VllmServer) -> None:
    case = CASES["thinking_prefill"]
    system, human, _ = case["request"]["messages"]
    (item,) = human["content"]
    recording = (DATA / "llm" / "audio" / item["input_audio"]["file"]).read_bytes()
    messages = [system, {"role": "user", "content": [audio_item(recording)]}]
    body = {"messages": messages, "chat_template_kwargs": {"enable_thinking": True}}
    assert tokenized(golden_server, body).json()["tokens"] == case["prompt_token_ids"]


@pytest.mark.parametrize("prefill", ["\n<think>\n", "<think>\n", "<think>"])
def test_a_request_chooses_among_the_known_prefills(prefill: str, tokenizer: PreTrainedTokenizerBase) -> None:
    hi = [{"role": "user", "content": "Hi"}]
    thinking = {"enable_thinking": True, "thinking_prefill": prefill}
    text = render(tokenizer, "think", hi, add_generation_prompt=True, **thinking)
    assert text == f"<|BOT|>human\nHi<|EOT|><|BOT|>assistant\n{prefill}"
    assert render(tokenizer, "think", hi, add_generation_prompt=False, **thinking) == "<|BOT|>human\nHi<|EOT|>"


@pytest.mark.vllm
def test_any_other_prefill_is_a_request_error(golden_server: VllmServer) -> None:
    thinking = {"enable_thinking": True, "thinking_prefill": "<|EOT|>"}
    refused = golden_server.chat({"messages": [{"role": "user", "content": "Hi"}], "chat_template_kwargs": thinking})
    assert refused.status_code == 400, refused.text
    assert "thinking_prefill" in refused.json()["error"]["message"]


THOUGHT = "\n<think>\nhm</think> or not</think>\n\n"


@pytest.mark.parametrize(
    "content",
    [
        f"{THOUGHT}Yes.",
        "Yes.",
        [{"type": "text", "text": f"{THOUGHT}Yes."}],
        [{"type": "text", "text": "\n<think>"}, {"type": "text", "text": THOUGHT}, {"type": "text", "text": "Yes."}],
    ],
)
@pytest.mark.parametrize("thinks", [True, False])
def test_earlier_turns_of_a_model_that_thinks_hold_no_thoughts(
    thinks: bool, content: Any, tokenizer: PreTrainedTokenizerBase
) -> None:
    messages = [{"role": "assistant", "content": content}, {"role": "user", "content": "a</think>b"}]
    text = render(tokenizer, "think", messages, add_generation_prompt=True, enable_thinking=thinks)
    opened = "\n<think>\n" if thinks else ""
    assert text == f"<|BOT|>assistant\nYes.<|EOT|><|BOT|>human\na</think>b<|EOT|><|BOT|>assistant\n{opened}"


def test_a_thought_leaves_the_speech_and_the_calls_of_its_turn(tokenizer: PreTrainedTokenizerBase) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "look", "arguments": {}}}
    content = [{"type": "text", "text": THOUGHT}, {"type": "audio"}, {"type": "text", "text": "\nYes."}]
    messages = [{"role": "assistant", "content": content, "tool_calls": [call]}]
    text = render(tokenizer, "think", messages, add_generation_prompt=True, enable_thinking=False)
    called = "<tool_call>function\nlook\n{}</tool_call>"
    assert text == f"<|BOT|>assistant\n<audio_patch>\nYes.{called}<|EOT|><|BOT|>assistant\n"


def test_a_turn_that_is_continued_keeps_its_thought(tokenizer: PreTrainedTokenizerBase) -> None:
    messages = [{"role": "assistant", "content": f"{THOUGHT}<tts_start>"}]
    text = render(tokenizer, "think", messages, continue_final_message=True, enable_thinking=True)
    assert text == f"<|BOT|>assistant\n{THOUGHT}<tts_start>"


def test_a_model_that_is_not_said_to_think_has_its_turns_as_they_are(tokenizer: PreTrainedTokenizerBase) -> None:
    messages = [{"role": "assistant", "content": f"{THOUGHT}Yes."}]
    text = render(tokenizer, "mini", messages, add_generation_prompt=True)
    assert text == f"<|BOT|>assistant\n{THOUGHT}Yes.<|EOT|><|BOT|>assistant\n"


# Think's reply


def streamed(server: VllmServer, body: dict[str, Any]) -> dict[str, Any]:
    """The texts of all deltas joined, and the ids."""
    joined: dict[str, Any] = {"reasoning": "", "content": "", "token_ids": []}
    url, asked = f"{server.base_url}/v1/chat/completions", {"model": server.model, **body, "stream": True}
    with httpx.stream("POST", url, json=asked, timeout=120) as answer:
        for line in answer.iter_lines():
            for choice in json.loads(line.removeprefix("data: "))["choices"] if line.startswith("data: {") else []:
                joined["token_ids"] += choice.get("token_ids") or []
                for field in ("reasoning", "content"):
                    joined[field] += choice["delta"].get(field) or ""
    return joined


def asking(**fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 300, **GREEDY, "ignore_eos": False, **fields}


@pytest.mark.vllm
@pytest.mark.parametrize("prefill", ["\n<think>\n", "<think>"])
def test_thought_and_answer_come_apart_whole_and_streamed(prefill: str, think: VllmServer) -> None:
    body = asking(chat_template_kwargs={"thinking_prefill": prefill})
    choice = think.chat(body).json()["choices"][0]
    message = choice["message"]
    assert choice["finish_reason"] == "stop"
    assert message["reasoning"].startswith(("I can", "I could")) and "think>" not in message["reasoning"]
    assert message["content"].startswith(("I am", "This is"))
    expected = {field: message[field] for field in ("reasoning", "content")} | {"token_ids": choice["token_ids"]}
    assert streamed(think, body) == expected


@pytest.mark.vllm
def test_a_thought_can_be_cut_off_by_the_length(think: VllmServer) -> None:
    choice = think.chat(asking(max_tokens=2)).json()["choices"][0]
    assert choice["message"]["reasoning"].startswith("I c") and choice["message"]["content"] is None


@pytest.mark.vllm
def test_thinking_is_switched_off_by_the_request(think: VllmServer) -> None:
    body = asking(chat_template_kwargs={"enable_thinking": False})
    message = think.chat(body).json()["choices"][0]["message"]
    assert message["reasoning"] is None
    assert message["content"].startswith(("I am", "This is"))
    assert streamed(think, body)["content"] == message["content"]


@pytest.mark.vllm
def test_the_thought_put_back_is_followed_by_speech(think: VllmServer) -> None:
    thought = think.chat(asking()).json()["choices"][0]["message"]["reasoning"]
    body = asking(add_generation_prompt=False, continue_final_message=True)
    body["messages"] += [{"role": "assistant", "content": f"\n<think>\n{thought}</think>\n\n<tts_start>"}]
    whole = think.chat(body).json()["choices"][0]
    assert whole["message"]["reasoning"] is None and whole["message"]["content"]
    again = streamed(think, body)
    assert (again["reasoning"], again["token_ids"]) == ("", whole["token_ids"])
    vocabulary = Vocabulary.from_ids(AutoTokenizer.from_pretrained(think.model).get_vocab())
    assert sum(vocabulary.speech_code(token) is not None for token in whole["token_ids"]) > 100


@pytest.mark.vllm
def test_a_form_that_is_asked_for_binds_the_answer_and_not_the_thought(think: VllmServer) -> None:
    body = asking(structured_outputs={"choice": ["left", "right"]})
    message = think.chat(body).json()["choices"][0]["message"]
    assert message["reasoning"].startswith(("I can", "I could"))
    assert message["content"] in ("left", "right")


# Base


@pytest.mark.vllm
@pytest.mark.parametrize("how", ["one message", "several messages", "a continued message"])
def test_base_reads_the_pieces_of_a_chat_as_recorded_and_goes_on(how: str, base: VllmServer) -> None:
    case = CASES["raw_continuation"]
    body = as_said_in(recorded_pieces(), how)
    choice = base.chat({**body, **GREEDY, "max_tokens": 32, "ignore_eos": True}).json()
    assert choice["prompt_token_ids"] == case["prompt_token_ids"]
    assert choice["choices"][0]["token_ids"] == case["greedy"]["token_ids"]


@pytest.mark.vllm
def test_base_ends_at_its_tokenizers_own_end_token(base: VllmServer, tokenizer: PreTrainedTokenizerBase) -> None:
    end = tokenizer.eos_token_id
    choice = base.chat(asking(max_tokens=4, allowed_token_ids=[end])).json()["choices"][0]
    assert (choice["finish_reason"], choice["token_ids"]) == ("stop", [end])


@pytest.mark.vllm
def test_base_refuses_tools_and_says_why(base: VllmServer) -> None:
    refused = base.chat(asking(tools=[TOOL], tool_choice="none"))
    assert refused.status_code == 400, refused.text
    assert "calls no tools" in refused.json()["error"]["message"]


def test_a_call_in_the_history_has_no_form_in_base(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(TemplateError, match="tool_calls"):
        render(tokenizer, "base", [{"role": "assistant", "content": "", "tool_calls": [{"id": "1", **TOOL}]}])


@pytest.mark.parametrize("asks", [True, False])
def test_base_writes_nothing_between_and_nothing_after(asks: bool, tokenizer: PreTrainedTokenizerBase) -> None:
    messages = [
        {"role": "system", "content": "Read this.\n"},
        {"role": "user", "content": [{"type": "audio"}, {"type": "text", "text": "A"}]},
        {"role": "assistant", "content": None},
        {"role": "user", "content": "B\n"},
    ]
    assert render(tokenizer, "base", messages, add_generation_prompt=asks) == "Read this.\n<audio_patch>AB\n"
