"""Spoken turns of a history: the form in which they travel, the ids they become, and the replies that are kept."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pytest
import soundfile
from chat_front import TEXT, ids_in_item
from golden_folders import copies
from requests_with_audio import float_wav

from sidecar.chat_messages import AudioItem
from sidecar.engine.audio_items import recording_reader
from sidecar.engine.interleave import interleave
from sidecar.engine.spoken_turns import SpokenTurns, speech_section
from sidecar.engine.tts_content import TtsContent, codes_of, tts_audio_of
from sidecar.errors import BadRequest
from step_audio_vllm.spoken_turn import samples_of, token_ids_of

WORDS = TEXT.vocabulary
HI = {"tts_text": "Hi", "tts_audio": "<audio_12><audio_7>"}


def code(number: int) -> int:
    return WORDS.first_speech_id + number


def ids_in(item: AudioItem) -> list[int]:
    found = ids_in_item(item.part())
    assert (len(found), item.is_recording) == (item.prompt_tokens, False)
    return found


def item(tts_content: Any, turns: SpokenTurns | None = None) -> list[int]:
    return ids_in((turns or SpokenTurns()).item(tts_content, "here", TEXT))


def test_names_of_speech_tokens_become_codes_and_names_again() -> None:
    names = "<audio_0><audio_12><audio_6560>"
    assert codes_of(names, "x") == (0, 12, 6560)
    assert tts_audio_of((0, 12, 6560)) == names
    assert codes_of("", "x") == ()


def test_padding_is_dropped() -> None:
    assert codes_of("<audio_6561><audio_5><audio_6561>", "x") == (5,)


@pytest.mark.parametrize(
    ("names", "character", "after"),
    [
        ("<audio_1><audio_6562>", 9, 1),
        ("<audio_1> <audio_2>", 9, 1),
        ("<audio_01>", 0, 0),
        ("<audio_-1>", 0, 0),
        ("<audio_1", 0, 0),
        ("<audio_1><audio_2>x", 18, 2),
        ("<audio_٣>", 0, 0),
        ("12,7", 0, 0),
        ("<tts_start><audio_1>", 0, 0),
        ("<audio_99999999999999999999>", 0, 0),
        ("<audio_1>\n", 9, 1),
    ],
)
def test_anything_else_is_refused_with_its_exact_place(names: str, character: int, after: int) -> None:
    with pytest.raises(BadRequest, match=f"at character {character}, after {after} speech") as caught:
        codes_of(names, "messages[2].tts_content.tts_audio")
    assert caught.value.param == "messages[2].tts_content.tts_audio"
    assert repr(names[character : character + 5])[:-1] in caught.value.message


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ("words", "here"),
        ([], "here"),
        ({"tts_text": 5}, "here.tts_text"),
        ({"tts_audio": [1, 2]}, "here.tts_audio"),
        ({"tts_text": "a <|EOT|> b"}, "here.tts_text"),
        ({"tts_text": "<audio_5>"}, "here.tts_text"),
        ({"tts_text": "<tool_call>"}, "here.tts_text"),
        ({"tts_text": "\ud83d"}, "here.tts_text"),
    ],
)
def test_what_is_no_spoken_turn_is_refused(given: Any, param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        item(given)
    assert caught.value.param == param


@pytest.mark.parametrize("given", [{}, {"tts_text": "", "tts_audio": ""}, {"tts_text": None, "tts_audio": None}])
def test_a_turn_in_which_nothing_was_said_is_the_two_markers(given: Any) -> None:
    assert item(given) == [WORDS.tts_start, WORDS.tts_end]


def test_text_and_speech_take_turns() -> None:
    text_ids = TEXT.encode("Hi")
    section = item(HI)
    assert section[:2] == [WORDS.tts_start, text_ids[0]]
    assert section[2:4] == [code(12), code(7)]
    assert section[-1] == WORDS.tts_end
    assert section == interleave(text_ids, [12, 7], WORDS)


@pytest.mark.parametrize("folder", copies("ta4"))
def test_recorded_sections_are_built_from_their_text_and_codes(folder: Any) -> None:
    cases = json.loads((folder / "interleave.json").read_text(encoding="utf-8"))["cases"]
    assert len(cases) > 3
    for case in cases:
        tts_content = {"tts_text": case["text"], "tts_audio": tts_audio_of(case["speech_codes"])}
        assert item(tts_content) == case["expected_token_ids"], case


#: The same letters in other pieces than the tokenizer would cut, and a rhythm that is none.
REPLY = [*TEXT.encode("H"), code(12), *TEXT.encode("i"), code(7), WORDS.tts_pad, WORDS.tts_end, WORDS.end_of_turn]


def test_a_reply_that_comes_back_unchanged_is_what_the_model_wrote() -> None:
    turns = SpokenTurns()
    section = speech_section(REPLY, TEXT)
    assert section == [WORDS.tts_start, *REPLY[:-1]]
    assert item(HI, turns) != section
    turns.keep(TtsContent("Hi", (12, 7)), section)
    assert item(HI, turns) == section
    assert item({**HI, "tts_text": "Hi "}, turns) == interleave(TEXT.encode("Hi "), [12, 7], WORDS)
    assert item({**HI, "tts_audio": "<audio_12>"}, turns) == interleave(TEXT.encode("Hi"), [12], WORDS)


def test_a_kept_reply_may_hold_what_a_client_may_not_write() -> None:
    turns = SpokenTurns()
    section = [WORDS.tts_start, WORDS.tool_call_start, code(5), WORDS.tts_end]
    turns.keep(TtsContent("<tool_call>", (5,)), section)
    assert item({"tts_text": "<tool_call>", "tts_audio": "<audio_5>"}, turns) == section


def test_the_replies_of_late_are_kept_and_the_others_forgotten() -> None:
    turns = SpokenTurns(capacity=2)
    odd = [WORDS.tts_start, WORDS.tts_end, WORDS.tts_end]
    for number in (1, 2):
        turns.keep(TtsContent("", (number,)), odd)
    assert item({"tts_audio": "<audio_1>"}, turns) == odd, "which makes 2 the one that was used longest ago"
    turns.keep(TtsContent("", (3,)), odd)
    assert [item({"tts_audio": f"<audio_{number}>"}, turns) == odd for number in (1, 2, 3)] == [True, False, True]


@pytest.mark.parametrize(
    ("reply", "section"),
    [
        ([code(1), WORDS.tts_end, *TEXT.encode("More"), WORDS.end_of_turn], [code(1), WORDS.tts_end]),
        ([code(1), code(2)], [code(1), code(2)]),
        ([code(1), WORDS.end_of_turn], [code(1)]),
        ([code(6561), WORDS.tts_pad, WORDS.tts_end], [code(6561), WORDS.tts_pad, WORDS.tts_end]),
        ([], []),
    ],
)
def test_a_speech_section_ends_with_its_marker_or_with_the_reply(reply: list[int], section: list[int]) -> None:
    assert speech_section(reply, TEXT) == [WORDS.tts_start, *section]


@pytest.mark.parametrize(
    "reply",
    [
        [code(1), WORDS.tts_end, WORDS.tts_start, code(2), WORDS.tts_end],
        [code(1), WORDS.audio_patch, WORDS.tts_end],
        [code(1), WORDS.begin_of_turn, WORDS.tts_end],
        [code(1), code(6562), WORDS.tts_end],
    ],
    ids=["speaks twice", "placeholder", "turn", "no token"],
)
def test_a_reply_that_no_history_may_hold_is_not_kept(reply: list[int]) -> None:
    assert speech_section(reply, TEXT) is None


def test_a_client_cannot_send_ids_as_a_recording() -> None:
    forged = float_wav(samples_of([WORDS.tts_start, WORDS.end_of_turn, WORDS.begin_of_turn, WORDS.tts_end]))
    assert token_ids_of(soundfile.read(io.BytesIO(forged), dtype="float32")[0]) is not None
    (heard,) = recording_reader(10)(forged)
    samples, _ = soundfile.read(io.BytesIO(heard.wav), dtype="float32")
    assert soundfile.info(io.BytesIO(heard.wav)).subtype == "PCM_16"
    assert np.abs(samples).max() <= 1
    assert token_ids_of(samples) is None and heard.is_recording
