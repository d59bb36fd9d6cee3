"""Recorded conversations on our own road: the sidecar's reader first, then the chat format, then the plugin's items."""

from __future__ import annotations

import base64
import copy
import io
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import soundfile
from comparison import Incomplete
from transformers import PreTrainedTokenizerBase

from sidecar.chat_requests import ChatReader
from sidecar.engine.audio_items import recording_reader, spoken_item
from sidecar.engine.spoken_turns import SpokenTurns
from sidecar.engine.text import TextTokenizer
from step_audio_vllm import CHAT_TEMPLATE, features
from step_audio_vllm.spoken_turn import token_ids_of

BASE_TEMPLATE = CHAT_TEMPLATE.with_name("chat_template_base.jinja")
MAX_RECORDING_SECONDS = 600


def body_of(case: dict[str, Any], audio: Path, text: TextTokenizer) -> dict[str, Any]:
    """A recorded case as the chat body that vLLM gets, with its recordings and spoken turns as audio items.

    Args:
        case: with a `request`; or `raw`, whose pieces become the parts of one message.
        audio: the folder of the recordings.

    Raises:
        Incomplete: it has neither.
    """
    if "request" in case:
        return through_the_sidecar(case["request"], audio, text)
    if case.get("template") != "raw":
        raise Incomplete(f"case {case['name']} has no request; record the folder anew")
    parts = [raw_part(piece, audio) for piece in case["messages"]]
    return {"messages": [{"role": "user", "content": parts}], "add_generation_prompt": False}


def template_of(case: dict[str, Any]) -> Path:
    return BASE_TEMPLATE if case.get("template") == "raw" else CHAT_TEMPLATE


def through_the_sidecar(request: dict[str, Any], audio: Path, text: TextTokenizer) -> dict[str, Any]:
    """A chat request of our own port, its recordings given by file name, as the sidecar sends it on."""
    filled = copy.deepcopy(request)
    for message in filled["messages"]:
        for part in message["content"] if isinstance(message.get("content"), list) else []:
            if "file" in part.get("input_audio", {}):
                part["input_audio"] = recording(audio / part["input_audio"]["file"])
    reader = ChatReader(
        require_plain=lambda *_: None,  # what our port refuses to send on is no matter of the ids that it would get
        recording=recording_reader(MAX_RECORDING_SECONDS),
        spoken_turn=partial(SpokenTurns().item, text=text),
    )
    return reader.read(json.dumps(filled).encode()).body


def recording(file: Path) -> dict[str, str]:
    return {"data": base64.b64encode(file.read_bytes()).decode(), "format": "wav"}


def raw_part(piece: str | dict[str, Any], audio: Path) -> dict[str, Any]:
    if isinstance(piece, str):
        return {"type": "text", "text": piece}
    if piece["type"] == "audio":
        return {"type": "input_audio", "input_audio": recording(audio / piece["audio"])}
    if piece["type"] == "token":
        return spoken_item(piece["token"]).part()
    return piece


def ids_of(body: dict[str, Any], tokenizer: PreTrainedTokenizerBase, text: TextTokenizer) -> list[int]:
    """The prompt of a body without vLLM: the template as transformers renders it, then the ids of every item."""
    rendered = tokenizer.apply_chat_template(
        with_arguments_parsed(body["messages"]),
        chat_template=CHAT_TEMPLATE.read_text(encoding="utf-8"),
        tokenize=False,
        tools=body.get("tools"),
        add_generation_prompt=body.get("add_generation_prompt", True),
        continue_final_message=body.get("continue_final_message", False),
    )
    items = ids_of_items(body["messages"], text)
    patch = text.vocabulary.audio_patch
    return [one for token in text.encode(rendered) for one in (next(items) if token == patch else [token])]


def with_arguments_parsed(messages: list[Any]) -> list[Any]:
    """Tool-call arguments as values, the way vLLM hands them to a template."""
    parsed = copy.deepcopy(messages)
    for message in parsed:
        for call in message.get("tool_calls") or []:
            call["function"]["arguments"] = json.loads(call["function"]["arguments"])
    return parsed


def ids_of_items(messages: list[Any], text: TextTokenizer) -> Iterator[list[int]]:
    """What stands for each item, in order: a spoken turn's ids, or a recording's blocks of placeholders."""
    words = text.vocabulary
    for message in messages:
        for part in message["content"] if isinstance(message["content"], list) else []:
            if part["type"] != "input_audio":
                continue
            wav = base64.b64decode(part["input_audio"]["data"])
            samples, _ = soundfile.read(io.BytesIO(wav), dtype="float32")
            counts = [features.placeholders(features.mel_frames(n)) for n in features.chunk_lengths(len(samples))]
            blocks = [[words.audio_start, *[words.audio_patch] * count, words.audio_end] for count in counts]
            yield token_ids_of(samples) or [token for block in blocks for token in block]
