"""What a listener hears of chunks that come when they come. Times are s, chunks multiples of 0.1 s of sound."""

from __future__ import annotations

import pytest
from heard import Sound, Words
from hypothesis import given
from hypothesis import strategies as st
from playback import Arrival, play

SECOND = 24_000

arriving = st.lists(st.tuples(st.floats(0, 2), st.integers(1, SECOND)), min_size=1, max_size=20)


def test_sound_that_comes_before_the_last_has_been_played_leaves_no_gap() -> None:
    playback = play([Arrival(5.0, SECOND), Arrival(5.5, SECOND), Arrival(6.9, SECOND)])
    assert playback.in_hand_s == pytest.approx((0.5, 0.1))
    assert (playback.late_chunks, playback.underrun_s) == (0, 0)


def test_after_a_gap_the_player_goes_on_and_the_next_chunk_is_judged_anew() -> None:
    playback = play([Arrival(1.0, SECOND), Arrival(2.3, SECOND), Arrival(3.2, SECOND), Arrival(4.4, SECOND)])
    assert playback.in_hand_s == pytest.approx((-0.3, 0.1, -0.1))
    assert playback.late_chunks == 2
    assert playback.underrun_s == pytest.approx(0.4)


@given(arriving)
def test_all_gaps_together_are_the_worst_deficit_of_a_player_that_never_waits(gaps: list[tuple[float, int]]) -> None:
    at_s, played_s, arrivals, worst_s = 0.0, 0.0, [], 0.0
    for gap_s, samples in gaps:
        at_s += gap_s
        arrivals.append(Arrival(at_s, samples))
        worst_s = max(worst_s, at_s - arrivals[0].at_s - played_s)
        played_s += samples / SECOND
    assert play(arrivals).underrun_s == pytest.approx(worst_s, abs=1e-9)


@given(arriving)
def test_who_waits_at_the_start_as_long_as_the_underrun_hears_no_gap(gaps: list[tuple[float, int]]) -> None:
    at_s, arrivals = 0.0, []
    for gap_s, samples in gaps:
        at_s += gap_s
        arrivals.append(Arrival(at_s, samples))
    first, *later = arrivals
    patient = play([Arrival(first.at_s + play(arrivals).underrun_s, first.samples), *later])
    assert patient.underrun_s == pytest.approx(0, abs=1e-9)


def test_a_reply_without_sound_and_one_of_a_single_chunk_have_no_gaps() -> None:
    assert play([]).in_hand_s == play([Arrival(3, 100)]).in_hand_s == ()


def test_the_header_is_no_sound_and_samples_may_be_cut_anywhere() -> None:
    streamed, whole, cut = Sound(44), Sound(44), Sound(44)
    for at_s, size in ((1, 44), (2, 200), (3, 100)):
        streamed.take(at_s, bytes(size))
    whole.take(3, bytes(344))
    for at_s, size in ((1, 40), (2, 5), (3, 1), (4, 298)):
        cut.take(at_s, bytes(size))
    assert streamed.arrivals == [(2, 100), (3, 50)] and streamed.first_s == 2
    assert whole.arrivals == [(3, 150)]
    assert cut.arrivals == [(3, 1), (4, 149)]


@pytest.mark.parametrize(
    "said", ['{"content": "Hm"}', '{"role": "assistant", "reasoning": "so"}', '{"tool_calls": [1]}']
)
def test_the_first_word_is_the_first_delta_that_says_something(said: str) -> None:
    words = Words()
    words.take(1, b'data: {"choices": [{"delta": {"role": "assistant", "content": ""}}]}\n\n')
    words.take(2, b'data: {"choices": [], "usage": {}}\n\ndata: {"choices": [{"delta": ')
    assert words.first_s is None
    words.take(3, f"{said}}}]}}\n\ndata: [DONE]\n\n".encode())
    words.take(4, f'data: {{"choices": [{{"delta": {said}}}]}}\n\n'.encode())
    assert words.first_s == 3
    assert words.arrivals == []
