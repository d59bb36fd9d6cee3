"""Streams that share steps, join and leave sound as each does alone, in whatever order their tokens come."""

from __future__ import annotations

import asyncio
import functools

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_token2wav import signal_to_noise_db, speech_tokens, tiny_token2wav, voice_of

from sidecar.streaming.chunking import Chunker, ChunkPlan
from sidecar.streaming.scheduler import StepTaken, StreamScheduler
from sidecar.streaming.steps import EagerSteps
from sidecar.streaming.stream import SpeechStream
from sidecar.token2wav.state import OpenedVoice
from sidecar.token2wav.token2wav import Token2Wav

PLAN = ChunkPlan(6, 12)
#: Of each stream, by its seed: other voices, of other lengths.
PROMPT_TOKENS = {1: 5, 2: 8, 3: 12}


@functools.cache
def token2wav() -> Token2Wav:
    return tiny_token2wav(steps=1)


@functools.cache
def voice(seed: int) -> OpenedVoice:
    return token2wav().open_voice(voice_of(PROMPT_TOKENS[seed], seed=seed))


def said(seed: int, count: int) -> list[int]:
    return speech_tokens(240, seed=seed)[:count].tolist()


@functools.cache
def alone(seed: int, count: int) -> np.ndarray:
    """Stepped by the plan, with nothing around it."""
    chunker = Chunker(PLAN, lookahead_tokens=Token2Wav.LOOKAHEAD_TOKENS)
    chunker.feed(said(seed, count))
    chunker.finish()
    state, pieces = token2wav().start(voice(seed), seed=seed), []
    while not chunker.done:
        chunk = chunker.take()
        samples, (state,) = token2wav().step(torch.tensor([chunk.tokens]), [state], last=chunk.last)
        pieces.append(samples[0].numpy())
    return np.concatenate(pieces)


def assert_sounds_as_alone(heard: np.ndarray, seed: int, count: int) -> None:
    expected = alone(seed, count)
    assert heard.shape == expected.shape
    assert signal_to_noise_db(torch.from_numpy(heard), torch.from_numpy(expected)) > 40


async def heard(stream: SpeechStream) -> np.ndarray:
    return np.concatenate([np.zeros(0, np.float32), *[samples async for samples in stream.samples()]])


def test_streams_of_three_voices_and_lengths_share_steps_and_sound_as_alone() -> None:
    counts, taken = {1: 30, 2: 47, 3: 40}, list[StepTaken]()

    async def test() -> None:
        scheduler = StreamScheduler(EagerSteps(token2wav()), PLAN, on_step=taken.append)
        streams = {seed: scheduler.open(voice(seed), seed=seed) for seed in counts}
        for seed, stream in streams.items():
            stream.feed(said(seed, counts[seed]))
            stream.finish()
        scheduler.start()
        for seed, stream in streams.items():
            assert_sounds_as_alone(await heard(stream), seed, counts[seed])
        await scheduler.close()

    asyncio.run(asyncio.wait_for(test(), 60))
    assert [step.streams for step in taken[:3]] == [3, 3, 3]
    assert len(taken) > 4, "the longer ones go on when 1 has left"


events = st.tuples(st.sampled_from(list(PROMPT_TOKENS)), st.integers(1, 20), st.booleans())


@settings(max_examples=15, deadline=None)
@given(events=st.lists(events, min_size=4, max_size=12), leaving=st.none() | st.sampled_from(list(PROMPT_TOKENS)))
def test_any_order_of_tokens_streams_and_hang_ups_gives_the_same_samples_as_alone(
    events: list[tuple[int, int, bool]], leaving: int | None
) -> None:
    """An event: a stream, which begins with its first, gets so many tokens; then, perhaps, steps are taken."""

    async def test() -> None:
        scheduler = StreamScheduler(EagerSteps(token2wav(), most_rows=2), PLAN)
        scheduler.start()
        streams: dict[int, SpeechStream] = {}
        fed = dict.fromkeys(PROMPT_TOKENS, 0)
        for seed, count, pause in events:
            if seed not in streams:
                streams[seed] = scheduler.open(voice(seed), seed=seed, live=seed != 3)
            streams[seed].feed(said(seed, fed[seed] + count)[fed[seed] :])
            fed[seed] += count
            await asyncio.sleep(0.02 if pause else 0)
        if leaving in streams:
            streams.pop(leaving).abandon()
        for stream in streams.values():
            stream.finish()
        for seed, stream in streams.items():
            assert_sounds_as_alone(await heard(stream), seed, fed[seed])
        await scheduler.close()

    asyncio.run(asyncio.wait_for(test(), 60))
