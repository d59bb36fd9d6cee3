"""Who leads the next step and who joins it. No step is computed here: streams are where the test says they are."""

from __future__ import annotations

import numpy as np
import pytest
from stream_parts import Clock, Device, tokens

from sidecar.streaming.chunking import Chunker, ChunkPlan
from sidecar.streaming.stream import FIRST_SOUND_LEAD_S, WHOLE_PATIENCE_S, SpeechStream
from sidecar.streaming.turns import Turns
from sidecar.timebase import SAMPLE_RATE_HZ
from sidecar.token2wav.state import OpenedVoice

PLAN = ChunkPlan(25, 25)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def turns(**device: int) -> Turns:
    return Turns(Device(**device), batch_wait_s=0.03)


def stream_with(
    clock: Clock, voice: OpenedVoice, *, sound_s: float | None = None, seed: int = 0, live: bool = True, chunk: int = 25
) -> SpeechStream:
    """With so much sound left (None: it has had none yet), and a chunk that waits since now."""
    stream = SpeechStream(
        Chunker(ChunkPlan(chunk, chunk), lookahead_tokens=3),
        voice,
        seed=seed,
        live=live,
        clock=clock,
        on_ready=lambda: None,
        on_end=lambda _: None,
    )
    if sound_s is not None:
        now_s, clock.now_s = clock.now_s, clock.now_s - 10
        stream.deliver(np.zeros(round((10 + sound_s) * SAMPLE_RATE_HZ), np.float32))
        clock.now_s = now_s
    stream.feed(tokens(chunk + 3))
    return stream


def seeds(chosen: list[tuple[SpeechStream, object]]) -> list[int]:
    return [stream.seed for stream, _ in chosen]


def test_nobody_waits_so_there_is_no_step(clock: Clock) -> None:
    assert turns().next_step([], clock.now_s) == []


def test_newcomers_lead_in_order_of_arrival_then_whose_sound_runs_out_sooner(clock: Clock, voice: OpenedVoice) -> None:
    waiting = [stream_with(clock, voice, seed=seed, sound_s=sound_s) for seed, sound_s in ((1, 0.15), (2, 0.1))]
    for seed in (3, 4):
        clock.now_s += 0.01
        waiting.append(stream_with(clock, voice, seed=seed))
    assert seeds(turns().next_step(waiting, clock.now_s)) == [3, 4, 2, 1]


def test_who_has_been_in_silence_for_long_goes_before_newcomers(clock: Clock, voice: OpenedVoice) -> None:
    silent = stream_with(clock, voice, seed=1, sound_s=0.0)
    clock.now_s += FIRST_SOUND_LEAD_S / 2
    newcomer = stream_with(clock, voice, seed=2)
    assert seeds(turns().next_step([silent, newcomer], clock.now_s)) == [2, 1]
    clock.now_s += FIRST_SOUND_LEAD_S
    latest = stream_with(clock, voice, seed=3)
    assert seeds(turns().next_step([silent, latest], clock.now_s)) == [1, 3]


def test_a_stream_far_ahead_yields_to_one_that_hurries_and_else_fills_the_step(
    clock: Clock, voice: OpenedVoice
) -> None:
    ahead = stream_with(clock, voice, seed=1, sound_s=1.5)
    for hurrying in (stream_with(clock, voice, seed=2), stream_with(clock, voice, seed=2, sound_s=0.1)):
        also = stream_with(clock, voice, seed=3, sound_s=0.15)
        assert seeds(turns().next_step([ahead, hurrying, also], clock.now_s)) == [2, 3]
    calm = stream_with(clock, voice, seed=4, sound_s=0.7)
    assert seeds(turns().next_step([ahead, calm], clock.now_s)) == [4, 1]


def test_where_rows_cost_next_to_nothing_those_ahead_join_one_that_hurries_too(
    clock: Clock, voice: OpenedVoice
) -> None:
    waiting = [stream_with(clock, voice, seed=seed, sound_s=seed) for seed in (3, 2, 1)]
    waiting += [stream_with(clock, voice, seed=0, sound_s=0.1)]
    assert seeds(turns(cheap_rows=3).next_step(waiting, clock.now_s)) == [0, 1, 2]
    waiting += [stream_with(clock, voice, seed=10 + row, sound_s=0.15) for row in range(3)]
    assert seeds(turns(cheap_rows=3).next_step(waiting, clock.now_s)) == [0, 10, 11, 12]


def test_what_is_wanted_as_a_whole_has_what_is_left_and_its_turn_after_a_while(
    clock: Clock, voice: OpenedVoice
) -> None:
    whole = stream_with(clock, voice, seed=1, live=False)
    assert seeds(turns().next_step([whole, stream_with(clock, voice, seed=2)], clock.now_s)) == [2]
    assert seeds(turns().next_step([whole, stream_with(clock, voice, seed=2, sound_s=0.8)], clock.now_s)) == [2, 1]
    assert seeds(turns().next_step([whole], clock.now_s)) == [1]
    clock.now_s += WHOLE_PATIENCE_S + FIRST_SOUND_LEAD_S + 0.1
    assert seeds(turns(most_rows=1).next_step([stream_with(clock, voice, seed=2), whole], clock.now_s)) == [1]


def test_a_step_takes_no_more_rows_than_it_has_and_none_that_cannot_share_it(clock: Clock, voice: OpenedVoice) -> None:
    waiting = [
        stream_with(clock, voice, seed=seed, sound_s=seed / 100, chunk=chunk)
        for seed, chunk in ((1, 20), (2, 25), (3, 10), (4, 20), (5, 20))
    ]
    chosen = turns(most_rows=3).next_step(waiting, clock.now_s)
    assert [(stream.seed, chunk.new_tokens) for stream, chunk in chosen] == [(1, 20), (3, 10), (4, 20)]


@pytest.mark.parametrize(
    ("sounds_s", "running", "wait_s"),
    [
        ([], 5, 0.0),
        ([1.5], 5, 0.03),
        ([1.5, 0.9], 5, 0.03),
        ([1.5], 1, 0.0),  # nobody else could come
        ([1.5, 0.21], 5, 0.01),  # then one hurries
        ([1.5, 0.1], 5, 0.0),
        ([1.5, None], 5, 0.0),
        ([1.5, 1.5, 1.5], 5, 0.0),  # the step is full
    ],
)
def test_a_step_waits_for_others_only_while_nobody_is_due(
    clock: Clock, voice: OpenedVoice, sounds_s: list[float | None], running: int, wait_s: float
) -> None:
    waiting = [stream_with(clock, voice, sound_s=sound_s) for sound_s in sounds_s]
    assert turns(most_rows=3).wait_s(waiting, running, clock.now_s) == pytest.approx(wait_s)


def test_the_wait_is_over_when_the_first_has_waited_for_its_time(clock: Clock, voice: OpenedVoice) -> None:
    first = stream_with(clock, voice, sound_s=3.0)
    clock.now_s += 0.02
    later = stream_with(clock, voice, sound_s=3.0)
    assert turns().wait_s([later, first], 5, clock.now_s) == pytest.approx(0.01)
    clock.now_s += 0.02
    assert turns().wait_s([later, first], 5, clock.now_s) == 0.0
