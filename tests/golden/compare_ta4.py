"""The token stream: splitting and interleaving, and the prompts that are plain turns. All exact.

Tool calls and prompts with tools or spoken history are written by the model's plugin, not by the sidecar; they are
not compared here, and one row says how many were left.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from comparison import Comparison

from sidecar.engine.interleave import interleave
from sidecar.engine.prompts import render
from sidecar.engine.splitter import Split, Splitter
from sidecar.engine.text import TextTokenizer

FILES = ("split.json", "interleave.json", "render.json", "tool_calls.json")
#: Keys of a message that `render` knows; anything else is more than a plain turn.
PLAIN_KEYS = {"role", "content"}


def recognises(folder: Path) -> bool:
    return any((folder / file).is_file() for file in FILES)


def tokenizer_of(folder: Path, recorded: dict[str, Any]) -> TextTokenizer:
    return TextTokenizer.from_folder(folder / recorded["tokenizer"])


def new_splitter(text: TextTokenizer, case: dict[str, Any]) -> Splitter:
    in_speech = case["prompt_tail_token_ids"][-1] == text.vocabulary.tts_start
    return Splitter(text.vocabulary, text.token_bytes, in_speech=in_speech)


def as_delta(split: Split) -> list[Any]:
    return [split.spoken_text, split.speech_codes, split.content_text]


def split_in_chunks(splitter: Splitter, token_ids: list[int], chunk_sizes: list[int]) -> list[list[Any]]:
    """One [spoken text, codes, content] per chunk; what the end sets free belongs to the last one."""
    deltas, start = [], 0
    for size in chunk_sizes:
        deltas.append(as_delta(splitter.feed(token_ids[start : start + size])))
        start += size
    assert start == len(token_ids), "the chunk sizes do not add up to the reply"
    rest = as_delta(splitter.finish())
    deltas[-1] = [ours + more for ours, more in zip(deltas[-1], rest, strict=True)]
    return deltas


def totals(deltas: list[list[Any]]) -> list[Any]:
    return [
        "".join(delta[0] for delta in deltas),
        [code for delta in deltas for code in delta[1]],
        "".join(delta[2] for delta in deltas),
    ]


def compare_split(comparison: Comparison) -> None:
    recorded = comparison.json("split.json")
    text = tokenizer_of(comparison.folder, recorded)
    for case in recorded["cases"]:
        expected = case["expected"]
        whole = [expected["speech_text"], expected["speech_codes"], expected["content_text"]]
        for stream in case["streams"]:
            name = f"split {case['name']} {stream['chunking']}"
            ours = split_in_chunks(new_splitter(text, case), case["token_ids"], stream["chunk_sizes"])
            comparison.same(name, totals(ours), whole)
            if stream.get("deltas") is not None:
                comparison.same(f"{name} deltas", ours, stream["deltas"])


def compare_interleave(comparison: Comparison) -> None:
    recorded = comparison.json("interleave.json")
    text = tokenizer_of(comparison.folder, recorded)
    for index, case in enumerate(recorded["cases"]):
        text_ids = text.encode(case["text"])
        comparison.same(f"interleave {index} text", text_ids, case["text_token_ids"])
        ours = interleave(text_ids, case["speech_codes"], text.vocabulary)
        comparison.same(f"interleave {index}", ours, case["expected_token_ids"])


def is_plain(request: dict[str, Any]) -> bool:
    return "tools" not in request and all(
        set(message) <= PLAIN_KEYS and isinstance(message["content"], str) and message["role"] != "tool"
        for message in request["messages"]
    )


def compare_render(comparison: Comparison) -> int:
    """Returns how many cases are more than plain turns."""
    recorded = comparison.json("render.json")
    text = tokenizer_of(comparison.folder, recorded)
    left = 0
    for case in recorded["cases"]:
        request = case["request"]
        if not is_plain(request):
            left += 1
            continue
        reply = [{"role": "assistant", "content": ""}] if request["add_generation_prompt"] else []
        ours = text.encode(render([*request["messages"], *reply]))
        comparison.same(f"render {case['name']}", ours, case["prompt_token_ids"])
    return left


def compare(comparison: Comparison) -> None:
    left = 0
    if comparison.has("split.json"):
        compare_split(comparison)
    if comparison.has("interleave.json"):
        compare_interleave(comparison)
    if comparison.has("render.json"):
        left += compare_render(comparison)
    if comparison.has("tool_calls.json"):
        left += len(comparison.json("tool_calls.json")["cases"])
    comparison.same(f"(not compared: {left} cases of tool calls and spoken history)", True, True)
