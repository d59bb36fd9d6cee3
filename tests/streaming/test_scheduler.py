"""Who goes next, and that one stream's trouble is not another's. Real token2wav at tiny size, a clock of the test's."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
import torch
from speech_parts import ERROR_SEED, NAN_SEED, FaultyToken2Wav

from sidecar.errors import Full, SynthesisFailed
from sidecar.streaming.chunking import Chunker, ChunkPlan
from sidecar.streaming.pool import StatePool
from sidecar.streaming.scheduler import StreamScheduler
from sidecar.streaming.stream import SpeechStream
from sidecar.timebase import tokens_to_samples, tokens_to_seconds
from sidecar.token2wav.state import OpenedVoice

PLAN = ChunkPlan(first_chunk_tokens=10, chunk_tokens=25)
LOOKAHEAD = 3
#: Sound that the vocoder withholds for the next cross-fade.
HELD_TOKENS = 4


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def tokens(count: int, seed: int = 0) -> list[int]:
    drawn = random.Random(seed)
    return [drawn.randrange(6561) for _ in range(count)]


@asynccontextmanager
async def scheduling(token2wav: Any, clock: Clock, plan: ChunkPlan = PLAN) -> AsyncIterator[StreamScheduler]:
    scheduler = StreamScheduler(token2wav, plan, clock=clock)
    scheduler.start()
    try:
        yield scheduler
    finally:
        await scheduler.close()


async def all_of(stream: SpeechStream) -> np.ndarray:
    return np.concatenate([samples async for samples in stream.samples()] or [np.zeros(0, np.float32)])


def run(test: Coroutine[None, None, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 60))


def test_a_stream_has_every_tokens_samples(token2wav: FaultyToken2Wav, voice: OpenedVoice, clock: Clock) -> None:
    async def test() -> None:
        async with scheduling(token2wav, clock) as scheduler:
            for count in (1, 12, 13, 40):
                stream = scheduler.open(voice, seed=1)
                stream.feed(tokens(count))
                stream.finish()
                assert (await all_of(stream)).size == tokens_to_samples(count)

    run(test())


def test_chunks_too_small_for_sound_reach_nobody_and_lose_nothing(
    token2wav: FaultyToken2Wav, voice: OpenedVoice, clock: Clock
) -> None:
    async def test() -> None:
        async with scheduling(token2wav, clock, ChunkPlan(1, 25)) as scheduler:
            stream = scheduler.open(voice, seed=1)
            token2wav.steps.clear()
            stream.feed(tokens(6))  # 1 and 2 are spoken, which the vocoder withholds
            while len(token2wav.steps) < 2:
                await asyncio.sleep(0.001)
            assert stream.urgency()[0] is False, "it has no sound, so it goes before those that have"
            stream.feed(tokens(34))
            stream.finish()
            pieces = [samples.size async for samples in stream.samples()]
            assert min(pieces) > 0
            assert sum(pieces) == tokens_to_samples(40)

    run(test())


def test_the_sound_is_that_of_token2wav_stepped_by_the_plan(
    token2wav: FaultyToken2Wav, voice: OpenedVoice, clock: Clock
) -> None:
    spoken = tokens(40)
    chunker = Chunker(PLAN, lookahead_tokens=LOOKAHEAD)
    chunker.feed(spoken)
    chunker.finish()
    state, expected = token2wav.start(voice, seed=5), []
    while chunker.peek() is not None:
        chunk = chunker.take()
        samples, (state,) = token2wav.step(torch.tensor([chunk.tokens]), [state], last=chunk.last)
        expected.append(samples[0].numpy())

    async def test() -> None:
        async with scheduling(token2wav, clock) as scheduler:
            stream = scheduler.open(voice, seed=5)
            for token in spoken:
                stream.feed([token])
                await asyncio.sleep(0)
            stream.finish()
            np.testing.assert_array_equal(await all_of(stream), np.concatenate(expected))

    run(test())


def test_a_first_chunk_goes_before_a_stream_that_is_ahead(
    token2wav: FaultyToken2Wav, voice: OpenedVoice, clock: Clock
) -> None:
    async def test() -> None:
        async with scheduling(token2wav, clock) as scheduler:
            ahead = scheduler.open(voice, seed=1)
            ahead.feed(tokens(13))
            sound = ahead.samples()
            await anext(sound)
            token2wav.steps.clear()
            ahead.feed(tokens(100))
            clock.now_s += 0.01
            newcomer = scheduler.open(voice, seed=2)
            newcomer.feed(tokens(13))
            await anext(newcomer.samples())
            assert token2wav.steps[0] == 2

    run(test())


def test_of_two_that_play_the_one_that_runs_out_sooner_goes_first(
    token2wav: FaultyToken2Wav, voice: OpenedVoice, clock: Clock
) -> None:
    async def test() -> None:
        async with scheduling(token2wav, clock) as scheduler:
            streams = {seed: scheduler.open(voice, seed=seed) for seed in (1, 2)}
            for seed, count in ((1, 13), (2, 33)):  # 0.24 s of sound, and 1.04 s
                streams[seed].feed(tokens(count))
            sounds = {seed: stream.samples() for seed, stream in streams.items()}
            for seed, chunks in ((1, 1), (2, 2)):
                for _ in range(chunks):
                    await anext(sounds[seed])
            token2wav.steps.clear()
            for seed in (2, 1):
                streams[seed].feed(tokens(60))
                streams[seed].finish()
            await anext(sounds[2])
            # 1 catches up chunk by chunk, and is let past until it has more sound than 2
            assert token2wav.steps[0] == 1

    run(test())


def test_a_gap_in_playback_is_counted_and_playback_goes_on_from_there(
    token2wav: FaultyToken2Wav, voice: OpenedVoice, clock: Clock
) -> None:
    async def test() -> None:
        async with scheduling(token2wav, clock) as scheduler:
            stream = scheduler.open(voice, seed=1)
            sound = stream.samples()
            stream.feed(tokens(13))
            await anext(sound)
            assert stream.urgency() == (True, pytest.approx(clock.now_s + tokens_to_seconds(10 - HELD_TOKENS)))
            clock.now_s += 0.2
            stream.feed(tokens(20))
            await anext(sound)
            assert stream.underruns == 0
            clock.now_s += 5
            stream.feed(tokens(30))
            await anext(sound)
            assert stream.underruns == 1
            assert stream.urgency() == (True, pytest.approx(clock.now_s + tokens_to_seconds(25)))

    run(test())


@pytest.mark.parametrize("seed", [NAN_SEED, ERROR_SEED])
def test_a_stream_that_fails_ends_alone(
    token2wav: FaultyToken2Wav, voice: OpenedVoice, clock: Clock, seed: int
) -> None:
    async def test() -> None:
        async with scheduling(token2wav, clock) as scheduler:
            broken, other = scheduler.open(voice, seed=seed), scheduler.open(voice, seed=1)
            for stream in (broken, other):
                stream.feed(tokens(60))
                stream.finish()
            pieces = []
            with pytest.raises(SynthesisFailed):
                async for samples in broken.samples():
                    pieces.append(samples)
            assert len(pieces) == 1, "what was made before the failure is heard"
            assert (await all_of(other)).size == tokens_to_samples(60)
            assert broken.state is None

    run(test())


def test_ids_without_a_sound_fail_their_stream(token2wav: FaultyToken2Wav, voice: OpenedVoice, clock: Clock) -> None:
    async def test() -> None:
        async with scheduling(token2wav, clock) as scheduler:
            stream = scheduler.open(voice, seed=1)
            stream.feed([1, 2, 6561])
            stream.finish()
            with pytest.raises(SynthesisFailed, match="6561"):
                await all_of(stream)

    run(test())


def test_an_abandoned_stream_takes_no_more_steps(token2wav: FaultyToken2Wav, voice: OpenedVoice, clock: Clock) -> None:
    async def test() -> None:
        async with scheduling(token2wav, clock) as scheduler:
            left, other = scheduler.open(voice, seed=1), scheduler.open(voice, seed=2)
            left.feed(tokens(200))
            await anext(left.samples())
            left.abandon()
            token2wav.steps.clear()
            assert left.state is None
            left.feed(tokens(10))
            other.feed(tokens(60))
            other.finish()
            await all_of(other)
            assert token2wav.steps.count(1) <= 1, "one step may have been on its way"

    run(test())


def test_a_stream_without_tokens_ends_without_sound(
    token2wav: FaultyToken2Wav, voice: OpenedVoice, clock: Clock
) -> None:
    async def test() -> None:
        async with scheduling(token2wav, clock) as scheduler:
            stream = scheduler.open(voice, seed=1)
            stream.finish()
            assert (await all_of(stream)).size == 0

    run(test())


def test_finishing_twice_loses_nothing_of_a_last_chunk_that_is_being_computed(voice: OpenedVoice, clock: Clock) -> None:
    async def test() -> None:
        chunker = Chunker(PLAN, lookahead_tokens=LOOKAHEAD)
        stream = SpeechStream(chunker, voice, seed=1, clock=clock, on_change=lambda: None)
        stream.feed(tokens(5))
        stream.finish()
        assert chunker.take().last
        stream.finish()
        stream.deliver(np.ones(tokens_to_samples(5), np.float32), None)
        assert (await all_of(stream)).size == tokens_to_samples(5)

    run(test())


def test_the_event_loop_goes_on_while_a_step_is_computed(
    token2wav: FaultyToken2Wav, voice: OpenedVoice, clock: Clock
) -> None:
    async def test() -> None:
        async with scheduling(token2wav, clock) as scheduler:
            stream = scheduler.open(voice, seed=1)
            stream.feed(tokens(60))
            stream.finish()
            speaking = asyncio.create_task(all_of(stream))
            turns = 0
            while not speaking.done():
                await asyncio.sleep(0.001)
                turns += 1
            assert turns > 10

    run(test())


def test_closing_ends_the_streams_that_run(token2wav: FaultyToken2Wav, voice: OpenedVoice, clock: Clock) -> None:
    async def test() -> None:
        async with scheduling(token2wav, clock) as scheduler:
            stream = scheduler.open(voice, seed=1)
            stream.feed(tokens(13))
        await all_of(stream)
        assert stream.ended

    run(test())


def test_a_pool_gives_each_slot_once_and_takes_it_back_once() -> None:
    pool = StatePool(2)
    first, _ = pool.take(), pool.take()
    assert pool.taken == 2
    with pytest.raises(Full, match="2 streams"):
        pool.take()
    first.release()
    first.release()
    assert pool.taken == 1
    pool.take()
    with pytest.raises(Full):
        pool.take()
