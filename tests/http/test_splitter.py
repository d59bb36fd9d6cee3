"""Token ids -> spoken text, speech codes, written text. Recorded cases are from the golden folder ta4."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import compare_ta4
import pytest
from comparison import Comparison
from golden_folders import DATA, copies
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.engine.interleave import interleave
from sidecar.engine.splitter import Splitter
from sidecar.engine.text import TextTokenizer

TEXT = TextTokenizer.from_folder(DATA / "llm/checkpoint")
WORDS = TEXT.vocabulary


def splitter(in_speech: bool = True) -> Splitter:
    return Splitter(WORDS, TEXT.token_bytes, in_speech=in_speech)


def speech(*codes: int) -> list[int]:
    return [WORDS.first_speech_id + code for code in codes]


@pytest.mark.parametrize("folder", copies("ta4"))
def test_recorded_replies_split_and_interleave_exactly(folder: Path) -> None:
    comparison = Comparison(folder)
    compare_ta4.compare(comparison)
    assert len(comparison.rows) > 150
    assert [str(row) for row in comparison.finish() if not row.good] == []


def test_a_character_that_waits_for_its_last_byte_does_not_hold_speech_back() -> None:
    first, *others = TEXT.encode("龘")
    assert others, "the character must be split over several tokens"
    ours = splitter()
    split = ours.feed([first, *speech(1, 2, 3, 4)])
    assert (split.spoken_text, split.speech_codes) == ("", [1, 2, 3, 4])
    split = ours.feed([*others, *speech(5)])
    assert (split.spoken_text, split.speech_codes) == ("龘", [5])


def test_an_unfinished_character_never_crosses_the_end_of_a_section() -> None:
    first, *others = TEXT.encode("龘")
    ours = splitter()
    assert ours.feed([first, WORDS.tts_end]).spoken_text == "\ufffd"
    split = ours.feed(others)
    assert "龘" not in split.content_text and split.spoken_text == ""


def test_an_unfinished_character_comes_out_when_the_stream_ends() -> None:
    first = TEXT.encode("龘")[0]
    ours = splitter()
    assert ours.feed([first]).spoken_text == ""
    assert ours.finish().spoken_text == "\ufffd"
    assert ours.finish().spoken_text == ""


@pytest.mark.parametrize("stop", sorted(WORDS.stop_ids))
def test_nothing_after_a_stop_token_counts(stop: int) -> None:
    ours = splitter()
    split = ours.feed([*speech(1), stop, *speech(2), *TEXT.encode("more")])
    assert (split.speech_codes, split.spoken_text, split.ended) == ([1], "", True)
    assert ours.feed(speech(3)).speech_codes == []


def test_other_stop_ids_can_be_given() -> None:
    ours = Splitter(WORDS, TEXT.token_bytes, in_speech=True, stop_ids=[WORDS.tts_pad])
    assert ours.feed([*speech(1), WORDS.tts_pad, *speech(2)]).speech_codes == [1]


def test_padding_and_rows_without_a_token_make_neither_sound_nor_text() -> None:
    silent = [WORDS.tts_pad, WORDS.audio_patch, WORDS.begin_of_turn, WORDS.first_speech_id + 6561, 10**9]
    split = splitter().feed(silent)
    assert (split.spoken_text, split.speech_codes, split.content_text, split.ended) == ("", [], "", False)


IDS = st.lists(
    st.one_of(
        st.sampled_from(TEXT.encode("龘😀 a é") + sorted(WORDS.stop_ids)),
        st.sampled_from([WORDS.tts_start, WORDS.tts_end, WORDS.tts_pad, WORDS.tool_call_start]),
        st.integers(0, WORDS.first_speech_id + 7000),
        st.integers(0, 255),  # single bytes: broken and unfinished characters in any order
    ),
    max_size=60,
)


@settings(max_examples=300, deadline=None)
@given(ids=IDS, cuts=st.lists(st.integers(0, 60)), in_speech=st.booleans())
def test_any_cutting_of_the_same_ids_gives_the_same_three_results(
    ids: list[int], cuts: list[int], in_speech: bool
) -> None:
    borders = sorted({0, len(ids), *[cut for cut in cuts if cut < len(ids)]})
    sizes = [end - start for start, end in pairwise(borders)] or [0]
    cut = compare_ta4.split_in_chunks(splitter(in_speech), ids, sizes)
    one_by_one = compare_ta4.split_in_chunks(splitter(in_speech), ids, [1] * len(ids) or [0])
    whole = compare_ta4.split_in_chunks(splitter(in_speech), ids, [len(ids)])
    assert compare_ta4.totals(cut) == compare_ta4.totals(whole) == compare_ta4.totals(one_by_one)
    assert [delta[1] for delta in whole] == [compare_ta4.totals(cut)[1]]


@settings(max_examples=100, deadline=None)
@given(text=st.text(alphabet="ab 龘😀é\n", max_size=20), codes=st.lists(st.integers(0, 6560), max_size=40))
def test_what_was_interleaved_splits_back(text: str, codes: list[int]) -> None:
    ids = interleave(TEXT.encode(text), codes, WORDS)
    ours = splitter(in_speech=False)
    split = ours.feed([*ids, WORDS.end_of_turn])
    assert (split.spoken_text, split.speech_codes, split.content_text, split.ended) == (text, codes, "", True)


@pytest.mark.parametrize("code", [-1, 6561])
def test_a_code_without_a_sound_is_not_interleaved(code: int) -> None:
    with pytest.raises(ValueError, match=str(code)):
        interleave([], [code], WORDS)
