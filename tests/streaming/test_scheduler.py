"""Who goes next, and that one stream's trouble is not another's. Real token2wav at tiny size, a clock of the test's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
import torch
from speech_parts import ERROR_SEED, NAN_SEED, FaultyToken2Wav
from stream_parts import Clock, Device, tokens

from sidecar.errors import Full, SynthesisFailed
from sidecar.streaming.chunking import Chunker, ChunkPlan
from sidecar.streaming.pool import StatePool
from sidecar.streaming.scheduler import StepTaken, StreamScheduler
from sidecar.streaming.steps import EagerSteps
from sidecar.streaming.stream import SpeechStream
from sidecar.timebase import tokens_to_samples, tokens_to_seconds
from sidecar.token2wav.state import OpenedVoice

PLAN = ChunkPlan(first_chunk_tokens=10, chunk_tokens=25)
LOOKAHEAD = 3
#: Sound that the vocoder withholds for the next cross-fade.
HELD_TOKENS = 4


@pytest.fixture
def clock() -> Clock:
    return Clock()


@asynccontextmanager
async def scheduling(
    token2wav: Any, clock: Clock, plan: ChunkPlan = PLAN, **told: Any
) -> AsyncIterator[StreamScheduler]:
    steps = token2wav if isinstance(token2wav, Device) else EagerSteps(token2wav)
    scheduler = StreamScheduler(steps, plan, clock=clock, **told)
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
            assert stream.due_at() < clock.now_s, "it has no sound, so it goes before those that have"
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
            assert token2wav.steps[0] == [2]

    run(test())


def test_of_two_that_play_the_one_that_runs_out_sooner_goes_first(
    token2wav: FaultyToken2Wav, voice: OpenedVoice, clock: Clock
) -> None:
    async def test() -> None:
        async with scheduling(token2wav, clock) as scheduler:
            streams = {seed: scheduler.open(voice, seed=seed) for seed in (1, 2)}
            for seed, count in ((1, 13), (2, 28)):  # 0.24 s of sound, and 0.84 s
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
            assert token2wav.steps[0][0] == 1

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
            assert stream.due_at() == pytest.approx(clock.now_s + tokens_to_seconds(10 - HELD_TOKENS))
            clock.now_s += 0.2
            stream.feed(tokens(10))
            await anext(sound)
            assert stream.underruns == 0
            clock.now_s += 5
            stream.feed(tokens(15))
            await anext(sound)
            assert stream.underruns == 1
            assert stream.due_at() == pytest.approx(clock.now_s + tokens_to_seconds(15))

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
            assert broken.playing is None

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
            left.feed(tokens(10))
            other.feed(tokens(60))
            other.finish()
            await all_of(other)
            assert sum(1 in seeds for seeds in token2wav.steps) <= 1, "one step may have been on its way"
            assert left.playing is None

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
        stream = SpeechStream(
            chunker, voice, seed=1, live=True, clock=clock, on_ready=lambda: None, on_end=lambda _: None
        )
        stream.feed(tokens(5))
        stream.finish()
        assert chunker.take().last
        stream.finish()
        stream.deliver(np.ones(tokens_to_samples(5), np.float32))
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


def test_streams_that_wait_share_a_step(token2wav: FaultyToken2Wav, voice: OpenedVoice, clock: Clock) -> None:
    counted: list[StepTaken] = []

    async def test() -> None:
        scheduler = StreamScheduler(EagerSteps(token2wav), PLAN, clock=clock, on_step=counted.append)
        for seed in (1, 2, 3):
            stream = scheduler.open(voice, seed=seed)
            stream.feed(tokens(13 + 15, seed))
        token2wav.steps.clear()
        assert scheduler.chunks_waiting == 3
        scheduler.start()
        await until(lambda: len(counted) == 2)
        assert scheduler.chunks_waiting == 0
        assert token2wav.steps == [[1, 2, 3], [1, 2, 3]]
        assert [(step.streams, step.first) for step in counted] == [(3, True), (3, False)]
        assert all(step.seconds > 0 for step in counted)
        await scheduler.close()

    run(test())


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


async def fed(scheduler: StreamScheduler, voice: OpenedVoice, seed: int, count: int, **how: bool) -> SpeechStream:
    stream = scheduler.open(voice, seed=seed, **how)
    stream.feed(tokens(count, seed))
    return stream


def test_a_first_chunk_has_a_lane_of_its_own_while_a_long_step_is_under_way(voice: OpenedVoice, clock: Clock) -> None:
    async def test() -> None:
        device = Device(lanes=2)
        async with scheduling(device, clock) as scheduler:
            playing = await fed(scheduler, voice, 1, 13)
            sound = playing.samples()
            await anext(sound)
            device.go_on.clear()
            playing.feed(tokens(10))
            await until(lambda: device.busy == [True, False])
            await fed(scheduler, voice, 2, 13)
            await until(lambda: device.busy == [True, True])
            await fed(scheduler, voice, 3, 13, live=False)
            await asyncio.sleep(0.02)
            assert [(step.lane, step.seeds) for step in device.steps] == [(1, [1]), (0, [1]), (1, [2])]
            device.go_on.set()
            await until(lambda: len(device.steps) == 4)
            assert (device.steps[3].lane, device.steps[3].seeds) == (0, [3]), "nobody listens to that one yet"

    run(test())


def test_the_event_loop_and_the_compute_thread_go_on_while_a_step_is_waited_for(
    voice: OpenedVoice, clock: Clock
) -> None:
    async def test() -> None:
        device = Device(lanes=2)
        async with scheduling(device, clock) as scheduler:
            whole = await fed(scheduler, voice, 1, 13, live=False)
            device.go_on.clear()
            await until(lambda: device.busy[0])
            await fed(scheduler, voice, 2, 13)
            await until(lambda: device.busy[1])
            device.go_on.set()
            whole.finish()
            assert (await all_of(whole)).size == tokens_to_samples(13)

    run(test())


def test_hanging_up_in_the_middle_of_a_step_frees_the_memory_once_it_is_over(voice: OpenedVoice, clock: Clock) -> None:
    async def test() -> None:
        device = Device(seats=2)
        async with scheduling(device, clock) as scheduler:
            device.go_on.clear()
            left, stays = [await fed(scheduler, voice, seed, 13) for seed in (1, 2)]
            await until(lambda: device.busy[0])
            left.abandon()
            assert device.open_seats == 2, "the step still reads and writes it"
            device.go_on.set()
            await anext(stays.samples())
            assert device.open_seats == 1
            stays.abandon()
            assert device.open_seats == 0, "of no step, so it goes at once"

    run(test())


def test_a_stream_for_which_there_is_no_memory_yet_has_it_once_another_has_ended(
    voice: OpenedVoice, clock: Clock
) -> None:
    async def test() -> None:
        device = Device(seats=2)
        async with scheduling(device, clock) as scheduler:
            first = await fed(scheduler, voice, 1, 13)
            second = await fed(scheduler, voice, 2, 13)
            await anext(first.samples())
            late = await fed(scheduler, voice, 3, 13)
            second.feed(tokens(15))
            await until(lambda: len(device.steps) == 2)
            assert device.steps[1].seeds == [2], "who has memory goes on"
            second.abandon()
            await anext(late.samples())
            assert device.steps[-1].seeds == [3]

    run(test())


def test_a_stream_that_cannot_have_memory_at_all_fails_alone(voice: OpenedVoice, clock: Clock) -> None:
    class Picky(Device):
        def open(self, voice: OpenedVoice, *, seed: int) -> Any:
            if seed == 1:
                raise RuntimeError("this voice lies on another device")
            return super().open(voice, seed=seed)

    async def test() -> None:
        async with scheduling(Picky(), clock) as scheduler:
            refused, other = [await fed(scheduler, voice, seed, 13) for seed in (1, 2)]
            with pytest.raises(SynthesisFailed, match="another device"):
                await anext(refused.samples())
            await anext(other.samples())

    run(test())


def test_a_step_that_breaks_under_way_ends_its_own_streams_alone(voice: OpenedVoice, clock: Clock) -> None:
    class Broken:
        def wait(self) -> Any:
            raise RuntimeError("the accelerator fell off")

    class Breaking(Device):
        def submit(self, rows: Any, *, lane: int) -> Any:
            return Broken() if rows[0][0].seed < 3 else super().submit(rows, lane=lane)

        def shareable(self, leader: Any, other: Any) -> bool:
            return bool((leader[0].seed < 3) == (other[0].seed < 3))

    async def test() -> None:
        device = Breaking()
        async with scheduling(device, clock) as scheduler:
            *broken, other = [await fed(scheduler, voice, seed, 13) for seed in (1, 2, 3)]
            for stream in broken:
                with pytest.raises(SynthesisFailed, match="fell off"):
                    await anext(stream.samples())
            await anext(other.samples())
            assert device.open_seats == 1

    run(test())


@pytest.mark.parametrize("when", ["begun", "waited for"])
def test_a_lost_device_is_told_of(voice: OpenedVoice, clock: Clock, when: str) -> None:
    class Lost(Device):
        def submit(self, rows: Any, *, lane: int) -> Any:
            if when == "begun":
                self.wait()
            return self

        def wait(self) -> Any:
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    async def test() -> None:
        told = asyncio.Event()
        loop = asyncio.get_running_loop()
        async with scheduling(Lost(), clock, on_broken=lambda: loop.call_soon_threadsafe(told.set)) as scheduler:
            stream = await fed(scheduler, voice, 1, 13)
            with pytest.raises(SynthesisFailed, match="illegal memory access"):
                await anext(stream.samples())
            await asyncio.wait_for(told.wait(), 5)

    run(test())


def test_a_lane_that_ends_by_a_mistake_is_told_of(voice: OpenedVoice, clock: Clock) -> None:
    class Mistaken(Device):
        def shareable(self, leader: Any, other: Any) -> bool:
            raise ValueError("a mistake of ours")

    async def test() -> None:
        told = asyncio.Event()
        async with scheduling(Mistaken(), clock, on_broken=told.set) as scheduler:
            for seed in (1, 2):
                await fed(scheduler, voice, seed, 13)
            await asyncio.wait_for(told.wait(), 5)

    run(test())


def test_only_those_who_listen_hear_a_gap(voice: OpenedVoice, clock: Clock) -> None:
    async def test() -> None:
        async with scheduling(Device(), clock) as scheduler:
            for live in (True, False):
                stream = await fed(scheduler, voice, 1, 13, live=live)
                sound = stream.samples()
                await anext(sound)
                clock.now_s += 5
                stream.feed(tokens(15))
                await anext(sound)
                assert stream.underruns == int(live)

    run(test())


def test_chunks_far_ahead_wait_a_moment_for_others_to_share_their_step(voice: OpenedVoice) -> None:
    async def test() -> None:
        device = Device()
        scheduler = StreamScheduler(device, ChunkPlan(25, 25), batch_wait_s=0.05)
        scheduler.start()
        streams = [await fed(scheduler, voice, seed, 28) for seed in (1, 2, 3)]
        sounds = [stream.samples() for stream in streams]
        for stream in streams:
            stream.feed(tokens(25))
        for sound in sounds:  # two seconds of sound each
            await anext(sound)
            await anext(sound)
        device.steps.clear()
        for stream in streams[:2]:
            await asyncio.sleep(0.005)
            stream.feed(tokens(25))
        await anext(sounds[0])
        assert [step.seeds for step in device.steps] == [[1, 2]]
        await scheduler.close()

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
