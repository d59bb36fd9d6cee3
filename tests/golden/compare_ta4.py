"""The token stream: splitting, interleaving, tool calls, and whole prompts, spoken history included. All exact."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from comparison import Comparison
from recorded_chats import body_of, ids_of
from transformers import PreTrainedTokenizerFast

from sidecar.engine.interleave import interleave
from sidecar.engine.splitter import Split, Splitter
from sidecar.engine.text import TextTokenizer
from step_audio_vllm.tool_calls import ToolCall, ToolCallDelta, ToolCallReader, read_tool_calls

FILES = ("split.json", "interleave.json", "render.json", "tool_calls.json")


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


def split_ids(text: TextTokenizer, prompt_ids: list[int], token_ids: list[int]) -> dict[str, list[int]]:
    """What the splitter takes each id for: here the text of a token is its own number."""
    in_speech = prompt_ids[-1] == text.vocabulary.tts_start
    splitter = Splitter(text.vocabulary, lambda token_id: f"{token_id} ".encode(), in_speech=in_speech)
    spoken, codes, content = totals([as_delta(splitter.feed(token_ids)), as_delta(splitter.finish())])
    return {
        "speech_text_token_ids": [int(number) for number in spoken.split()],
        "speech_codes": codes,
        "content_token_ids": [int(number) for number in content.split()],
    }


def compare_split(comparison: Comparison) -> None:
    recorded = comparison.json("split.json")
    text = tokenizer_of(comparison.folder, recorded)
    for case in recorded["cases"]:
        expected = case["expected"]
        whole = [expected["speech_text"], expected["speech_codes"], expected["content_text"]]
        ours_by_id = split_ids(text, case["prompt_tail_token_ids"], case["token_ids"])
        comparison.same(f"split {case['name']} ids", ours_by_id, {kind: expected[kind] for kind in ours_by_id})
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


def joined(pieces: Iterable[ToolCallDelta]) -> list[list[str]]:
    """[name, arguments as text] of each streamed call; its first piece, and no other, has the name."""
    calls: list[list[str]] = []
    for piece in pieces:
        if piece.name is not None:
            calls.append([piece.name, ""])
        assert piece.index == len(calls) - 1, "a piece belongs to a call that is not the newest"
        calls[-1][1] += piece.arguments
    return calls


def read_streamed(reader: ToolCallReader, portions: Iterable[str]) -> tuple[str, list[list[str]]]:
    """Content and calls of a text that comes in portions."""
    deltas = [*map(reader.feed, portions), reader.finish()]
    return "".join(content for content, _ in deltas), joined(piece for _, pieces in deltas for piece in pieces)


def split_with_calls(text: TextTokenizer, token_ids: list[int], names: list[str] | None) -> tuple[str, list[list[str]]]:
    """The same through the splitter, id by id."""
    reader = ToolCallReader(names)
    splitter = Splitter(text.vocabulary, text.token_bytes, in_speech=False, tool_calls=reader)
    splits = [*(splitter.feed([token_id]) for token_id in token_ids), splitter.finish()]
    return "".join(split.content_text for split in splits), joined(piece for one in splits for piece in one.tool_calls)


def compare_tool_calls(comparison: Comparison) -> None:
    recorded = comparison.json("tool_calls.json")
    tokenizer = tokenizer_of(comparison.folder, recorded)
    for case in recorded["cases"]:
        name, text, names = f"tool calls {case['name']}", case["text"], case["tool_names"]
        content, calls = case["expected"]["content"], case["expected"]["tool_calls"]
        expected = (content, [ToolCall(call["name"], call["arguments_json"]) for call in calls])
        whole = read_tool_calls(text, names)
        comparison.same(name, whole, expected)
        values = [(call["name"], call["arguments"]) for call in calls]
        comparison.same(f"{name} values", [(call.name, json.loads(call.arguments)) for call in whole[1]], values)
        if not case["streaming_must_agree"]:
            continue
        for way, (streamed, pieces) in {
            "by characters": read_streamed(ToolCallReader(names), text),
            "in one": read_streamed(ToolCallReader(names), [text]),
            "by ids": split_with_calls(tokenizer, case["token_ids"], names),
        }.items():
            ours = [(called, json.loads(arguments)) for called, arguments in pieces]
            comparison.same(f"{name} {way}", (streamed or None, ours), (content, values))


def compare_render(comparison: Comparison) -> None:
    """Requests through the sidecar's reader, the chat format and the plugin's items."""
    recorded = comparison.json("render.json")
    text = tokenizer_of(comparison.folder, recorded)
    template_engine = PreTrainedTokenizerFast(
        tokenizer_file=str(comparison.folder / recorded["tokenizer"] / "tokenizer.json")
    )
    for case in recorded["cases"]:
        body = body_of(case, comparison.folder / "audio", text)
        comparison.same(f"render {case['name']}", ids_of(body, template_engine, text), case["prompt_token_ids"])


def compare(comparison: Comparison) -> None:
    if comparison.has("split.json"):
        compare_split(comparison)
    if comparison.has("interleave.json"):
        compare_interleave(comparison)
    if comparison.has("render.json"):
        compare_render(comparison)
    if comparison.has("tool_calls.json"):
        compare_tool_calls(comparison)
