"""Token ids -> spoken text, speech codes, written text, calls. Recorded cases are from the golden folder ta4."""

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
from step_audio_vllm.tool_calls import ToolCallReader

TEXT = TextTokenizer.from_folder(DATA / "llm/checkpoint")
WORDS = TEXT.vocabulary


OFFERED = {"get_weather"}
CALL = '<tool_call>function\nget_weather\n{"city": "上海", "note": "龘"}</tool_call>'


def splitter(in_speech: bool = True, tool_calls: ToolCallReader | None = None) -> Splitter:
    return Splitter(WORDS, TEXT.token_bytes, in_speech=in_speech, tool_calls=tool_calls)


def portions(ids: list[int], cuts: list[int]) -> list[list[int]]:
    borders = [0, *sorted(cut for cut in cuts if cut < len(ids)), len(ids)]
    return [ids[start:end] for start, end in pairwise(borders)]


def totals_with_calls(ours: Splitter, parts: list[list[int]]) -> tuple[str, list[int], str, list[list[str]]]:
    splits = [*(ours.feed(part) for part in parts), ours.finish()]
    return (
        "".join(split.spoken_text for split in splits),
        [code for split in splits for code in split.speech_codes],
        "".join(split.content_text for split in splits),
        compare_ta4.joined(piece for split in splits for piece in split.tool_calls),
    )


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


PIECES = st.lists(
    st.one_of(
        st.sampled_from([CALL, CALL[:30], CALL[30:], "<tool_call>", "</tool_call>", "<tool", "龘😀", " a"]).map(
            TEXT.encode
        ),
        st.sampled_from([WORDS.tts_start, WORDS.tts_end, WORDS.tts_pad, WORDS.audio_patch]).map(lambda name: [name]),
        st.lists(st.integers(0, 6561), max_size=5).map(lambda codes: speech(*codes)),
        st.sampled_from(sorted(WORDS.stop_ids)).map(lambda stop: [stop]),
        st.lists(st.integers(0, 255), max_size=2),  # parts of characters
    ),
    max_size=12,
).map(lambda lists: [token_id for ids in lists for token_id in ids])


@settings(max_examples=300, deadline=None)
@given(ids=PIECES, cuts=st.lists(st.integers(0, 400)), in_speech=st.booleans())
def test_with_calls_too_any_cutting_gives_the_same_four_results(
    ids: list[int], cuts: list[int], in_speech: bool
) -> None:
    in_one = totals_with_calls(splitter(in_speech, ToolCallReader(OFFERED)), [ids])
    assert totals_with_calls(splitter(in_speech, ToolCallReader(OFFERED)), portions(ids, cuts)) == in_one
    assert totals_with_calls(splitter(in_speech, ToolCallReader(OFFERED)), [[one] for one in ids]) == in_one
    spoken, codes, content, calls = totals_with_calls(splitter(in_speech), [ids])
    assert (spoken, codes, calls) == (*in_one[:2], [])
    assert compare_ta4.read_streamed(ToolCallReader(OFFERED), [content]) == in_one[2:]


@settings(max_examples=100, deadline=None)
@given(ids=PIECES)
def test_no_speech_code_ever_waits_for_text(ids: list[int]) -> None:
    plain, ours = splitter(), splitter(tool_calls=ToolCallReader(OFFERED))
    for token_id in ids:
        assert ours.feed([token_id]).speech_codes == plain.feed([token_id]).speech_codes


def test_a_call_after_speech_comes_as_a_call_and_not_as_content() -> None:
    ids = [*interleave(TEXT.encode("龘 hi"), list(range(17)), WORDS)[1:], *TEXT.encode(CALL), WORDS.end_of_turn]
    whole = totals_with_calls(splitter(tool_calls=ToolCallReader(OFFERED)), [ids])
    assert whole == ("龘 hi", list(range(17)), "", [["get_weather", '{"city": "上海", "note": "龘"}']])


def test_a_stop_token_ends_the_text_that_a_call_has_held_back() -> None:
    ours = splitter(in_speech=False, tool_calls=ToolCallReader(OFFERED))
    assert ours.feed(TEXT.encode(f"{CALL} done")).content_text == ""
    assert ours.feed([WORDS.end_of_turn]).content_text == " done"
    assert ours.finish().content_text == ""


def test_without_a_reader_a_call_stays_text() -> None:
    split = splitter(in_speech=False).feed(TEXT.encode(CALL))
    assert (split.content_text, split.tool_calls) == (CALL, [])


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
