"""What the synthetic model says: a script of places, each with the tokens that may stand there.

A token belongs to one place of one reply, so the newest token alone tells what comes next, and the script can be
written into the weights of any transformer (synthetic_weights.py) without a memory or a counter. The model's own rhythm
is kept: in speech one text token and four speech tokens by turns, paddings at the end, `<tts_end>`, `<|EOT|>`.
"""

from __future__ import annotations

from dataclasses import dataclass

from step_audio_vllm.vocabulary import (
    END_OF_TURN,
    SPEECH_CODES,
    SPEECH_PAD_CODE,
    TTS_END,
    TTS_PAD,
    TTS_START,
    speech_token_name,
)

#: Speech tokens after each text token, as the real model was trained to write them.
CODES_A_WORD = 4

#: How much less likely than a further word the end is, in the places where both may stand (logits).
END_RELUCTANCE = 3.0

# Pieces of text that no text is ever tokenized to, since a word never keeps the space behind it: a prompt that ends
# with the word "noise" must not put the model in the middle of its own sentence. Choices for one place are joined by
# "|". The note is cut inside its second byte: a character of the real model may lie across two tokens as well.
SPOKEN_WORDS: tuple[bytes, ...] = (
    *(
        word.encode()
        for word in (
            "Hello! |Hi! |Good day! ",
            "I ",
            "am |remain ",
            "only |merely ",
            "the ",
            "tiny |little |small ",
            "test ",
            "model. ",
            "What ",
            "you ",
            "hear |notice ",
            "is ",
            "noise, ",
            "made ",
            "from |of ",
            "random ",
            "numbers. |figures. ",
            "It |This ",
            "shows |proves ",
            "that ",
            "each ",
            "part |piece ",
            "works: ",
            "words ",
            "become ",
            "sound. ",
            "My ",
            "text |sentence ",
            "never ",
            "changes, ",
            "whatever |however ",
            "anybody ",
            "asks. ",
            "Load ",
            "trained ",
            "weights ",
            "to ",
            "get ",
            "speech! ",
        )
    ),
    b"\xe2\x99",
    b"\xaa ",
)

#: After the sentence a reply may go on with these or end, so that replies have different lengths.
REFRAIN: tuple[bytes, ...] = (b"la ", b"laa, ", b"da ", b"daa, ", b"dum ", b"dumm, ", b"la-la ", b"da-dum. ")

WRITTEN_WORDS: tuple[bytes, ...] = tuple(
    words.encode()
    for words in (
        "I am |This is ",
        "only a |just a ",
        "tiny test |little test |small test ",
        "model, and |network, and ",
        "my words |these words ",
        "never change |stay the same ",
        "whatever you |however you ",
        "ask me. |write me. ",
        "Load trained ",
        "weights to |parameters to ",
        "get real |receive real ",
        "answers.|replies.",
    )
)

#: Said first where the prompt's last token opens a thought. The closing tag is cut as no tokenizer would cut it.
THOUGHT_WORDS: tuple[bytes, ...] = tuple(
    words.encode()
    for words in (
        "I can |I could ",
        "not think, so |not reason, so ",
        "I repeat |I recite ",
        "my sentence.|what I know.",
        "</t",
        "hink",
        ">\n\n",
    )
)

#: The last token of a prompt that ends with `<think>` or with `<think>` and a newline.
THOUGHT_OPENINGS = (b">", b">\n")


@dataclass(frozen=True)
class Script:
    """Places by number, the names of the tokens that may stand in each, and the place that each token leads to.

    Every token that is not in `leads_to` leads to `text_start`, the beginning of a written reply.
    """

    places: tuple[tuple[str, ...], ...]
    leads_to: dict[str, int]
    text_start: int
    reluctance: dict[str, float]


def pieces(words: tuple[bytes, ...]) -> list[tuple[bytes, ...]]:
    """The choices of each place."""
    return [tuple(word.split(b"|")) for word in words]


def all_pieces() -> list[bytes]:
    """Every piece of text that the script needs as one token, in order."""
    words = SPOKEN_WORDS + REFRAIN + WRITTEN_WORDS + THOUGHT_WORDS
    return [piece for choices in pieces(words) for piece in choices]


def write_script(name_of: dict[bytes, str]) -> Script:
    """The script in the names of a tokenizer.

    Args:
        name_of: each of `all_pieces()` and `THOUGHT_OPENINGS` -> its name in the tokenizer's vocabulary.
    """
    chain = _spoken_places(name_of)
    leads_to = {token: place + 1 for place, tokens in enumerate(chain) for token in tokens}
    # the padding may stand in many places and always leads to the last four speech tokens
    leads_to[TTS_PAD] = len(chain) - CODES_A_WORD - 1
    leads_to[TTS_START] = 0
    end = len(chain)
    text_start = end + 1
    written = [_names(choices, name_of) for choices in pieces(WRITTEN_WORDS)]
    for place, tokens in enumerate(written, start=text_start):
        leads_to |= dict.fromkeys(tokens, place + 1)
    leads_to |= dict.fromkeys(written[-1], end)
    thought_start = text_start + len(written)
    thought = [_names(choices, name_of) for choices in pieces(THOUGHT_WORDS)]
    for place, tokens in enumerate([_names(THOUGHT_OPENINGS, name_of), *thought], start=thought_start):
        leads_to |= dict.fromkeys(tokens, place)
    leads_to |= dict.fromkeys(thought[-1], text_start)
    places = (*chain, (END_OF_TURN,), *written, *thought)
    return Script(places, leads_to, text_start, {TTS_PAD: END_RELUCTANCE})


def _spoken_places(name_of: dict[bytes, str]) -> list[tuple[str, ...]]:
    """Text, four speech tokens, text, ...: the sentence, a refrain of any length, the paddings, `<tts_end>`."""
    texts = [_names(choices, name_of) for choices in pieces(SPOKEN_WORDS)]
    texts += [(*_names(choices, name_of), TTS_PAD) for choices in pieces(REFRAIN)]
    texts += [(TTS_PAD,)]
    codes = iter(_code_blocks(len(texts) * CODES_A_WORD - 1))
    chain: list[tuple[str, ...]] = []
    for text in texts:
        chain += [text, *(block for _, block in zip(range(CODES_A_WORD), codes, strict=False))]
    return [*chain, (speech_token_name(SPEECH_PAD_CODE),), (TTS_END,)]


def _code_blocks(count: int) -> list[tuple[str, ...]]:
    """All speech codes dealt out to `count` places, as evenly as it goes."""
    return [tuple(speech_token_name(code) for code in range(place, SPEECH_CODES, count)) for place in range(count)]


def _names(choices: tuple[bytes, ...], name_of: dict[bytes, str]) -> tuple[str, ...]:
    return tuple(name_of[choice] for choice in choices)
