"""The synthetic model's tokenizer: a small byte-level BPE with the real model's split pattern and control tokens."""

from __future__ import annotations

import re
from collections import Counter
from itertools import pairwise
from typing import Any

from step_audio_vllm.vocabulary import (
    AUDIO_END,
    AUDIO_PATCH,
    AUDIO_START,
    BEGIN_OF_TURN,
    END_OF_TEXT,
    END_OF_TURN,
    IM_END,
    SPEECH_PAD_CODE,
    TOOL_CALL_END,
    TOOL_CALL_START,
    TTS_END,
    TTS_PAD,
    TTS_START,
    speech_token_name,
)

#: How Qwen2 cuts text into pieces before merging.
SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# The control tokens in the real model's order: Qwen's own, special and not, then those of Step-Audio 2.
_QWEN_SPECIAL = (
    END_OF_TEXT,
    "<|im_start|>",
    IM_END,
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
_QWEN_PLAIN = (
    TOOL_CALL_START,
    TOOL_CALL_END,
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
)
_STEP_SPECIAL = (
    END_OF_TURN,
    BEGIN_OF_TURN,
    *(f"<|reserved_{number}|>" for number in range(21)),
    AUDIO_START,
    AUDIO_END,
    AUDIO_PATCH,
    "<|reserved_a|>",
    "<|reserved_b|>",
    TTS_START,
    TTS_END,
    TTS_PAD,
)

MERGES = 384
#: As in the real vocabulary: `<think>` and a newline do not end with the token that ends `assistant` and a newline.
CLOSED_LINE = (b">", b"\n")

#: What the merges are learnt from: enough for common words and a few Chinese characters to be single tokens.
TRAINING_TEXT = """
You are a helpful assistant. Read this paragraph at a natural pace. Please listen carefully to this audio and then
translate its content into Chinese. Please briefly explain the important events involved in this audio clip.
A model that speaks takes text and sound, thinks about both, and answers with text and sound. The sound is made of
small pieces, twenty-five of them in a second, and a second network turns them into a voice. What was said, who said it
and how it was said all matter: a question asked with a smile is not the same question. The weather is fine today, and
there is time for one more story. Once there was a river that wanted to know where the sea was, and it asked the stones,
the trees and the birds, and none of them could tell it, so it went and looked for itself. How are you? I would like to
hear the news, and then some music. Thank you very much for your help. system human assistant function output input
请记录下你所听到的语音内容。请仔细聆听这段语音，然后将其内容翻译成中文。请用语音与我交流。以自然的语速读出下面的文字。
你好，今天天气很好，我们一起去公园走走吧。我想听一个故事，也想听一点音乐。谢谢你的帮助，我们明天再见。
"""


def byte_alphabet() -> dict[int, str]:
    """GPT-2's printable stand-in for each byte, in which a byte-level vocabulary is written."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + rank) for rank, byte in enumerate(others)}


def vocabulary_name(piece: bytes) -> str:
    """Bytes as a byte-level vocabulary spells them."""
    alphabet = byte_alphabet()
    return "".join(alphabet[byte] for byte in piece)


def learn_merges(text: str, count: int) -> list[tuple[str, str]]:
    """Byte-pair encoding (arXiv 1508.07909): the `count` most frequent pairs, one after the other.

    Ties go to the pair that sorts last, so the same text always gives the same merges.
    """
    words = Counter(tuple(vocabulary_name(word.encode())) for word in re.findall(r" ?\w+|[^\w\s]|\s", text))
    merges: list[tuple[str, str]] = []
    for _ in range(count):
        pairs: Counter[tuple[str, str]] = Counter()
        for word, times in words.items():
            for pair in pairwise(word):
                pairs[pair] += times
        merges.append(max(pairs, key=lambda pair: (pairs[pair], pair)))
        words = Counter({_merged(word, merges[-1]): times for word, times in words.items()})
    return merges


def _merged(word: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    joined: list[str] = []
    for symbol in word:
        if joined and (joined[-1], symbol) == pair:
            joined[-1] += symbol
        else:
            joined.append(symbol)
    return tuple(joined)


def tokenizer_json(pieces: list[bytes]) -> dict[str, Any]:
    """The contents of tokenizer.json.

    Args:
        pieces: text that must be one token each. They are in the vocabulary and no merge leads to them: the model can
            write them, and no text is tokenized to them.
    """
    bracket, newline = map(vocabulary_name, CLOSED_LINE)
    merges = [*learn_merges(TRAINING_TEXT, MERGES), (bracket, newline)]
    names = [*sorted(byte_alphabet().values()), *("".join(pair) for pair in merges), *map(vocabulary_name, pieces)]
    vocabulary = {name: token_id for token_id, name in enumerate(names)}
    assert len(vocabulary) == len(names), "a piece of the script is no token of its own: reword it"
    split = {"type": "Split", "pattern": {"Regex": SPLIT_PATTERN}, "behavior": "Isolated", "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added_tokens(len(vocabulary)),
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": byte_level,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": [list(pair) for pair in merges],
        },
    }


def tokenizer_config(context_tokens: int) -> dict[str, Any]:
    """The contents of tokenizer_config.json."""
    return {
        "tokenizer_class": "Qwen2Tokenizer",
        "add_bos_token": False,
        "add_prefix_space": False,
        "bos_token": None,
        "eos_token": END_OF_TEXT,
        "pad_token": END_OF_TEXT,
        "unk_token": None,
        "clean_up_tokenization_spaces": False,
        "errors": "replace",
        "split_special_tokens": False,
        "model_max_length": context_tokens,
    }


def token_ids(tokenizer: dict[str, Any]) -> dict[str, int]:
    """Every token of a tokenizer.json by name, added ones included."""
    words: dict[str, int] = tokenizer["model"]["vocab"]
    return words | {token["content"]: token["id"] for token in tokenizer["added_tokens"]}


def _added_tokens(first_id: int) -> list[dict[str, Any]]:
    special = [
        *((name, True) for name in _QWEN_SPECIAL),
        *((name, False) for name in _QWEN_PLAIN),
        *((name, True) for name in _STEP_SPECIAL),
    ]
    speech = [(speech_token_name(code), False) for code in range(SPEECH_PAD_CODE + 1)]
    return [
        {
            "id": token_id,
            "content": name,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": is_special,
        }
        for token_id, (name, is_special) in enumerate([*special, *speech], start=first_id)
    ]
