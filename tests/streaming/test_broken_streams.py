"""Numbers that are not finite, or ids without a sound, in one stream: the others don't hear of it."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_token2wav import signal_to_noise_db

from sidecar.errors import SynthesisFailed
from sidecar.streaming.chunking import ChunkPlan
from sidecar.streaming.scheduler import StreamScheduler
from sidecar.streaming.steps import EagerSteps
from sidecar.streaming.stream import SpeechStream
from sidecar.timebase import tokens_to_samples
from sidecar.token2wav.state import OpenedVoice, VoiceFeatures
from sidecar.token2wav.token2wav import Token2Wav

PLAN = ChunkPlan(first_chunk_tokens=10, chunk_tokens=25)
#: A speech token whose row in the embedding is poisoned.
POISON = 4218


@pytest.fixture(scope="module")
def poisoned(checkpoint: Path) -> Token2Wav:
    token2wav = Token2Wav.from_folder(checkpoint / "token2wav")
    token2wav.flow.network.input_embedding.weight[POISON] = torch.nan
    return token2wav


def tokens(count: int, *, seed: int) -> list[int]:
    drawn = random.Random(seed)
    return [drawn.randrange(POISON) for _ in range(count)]


async def heard(stream: SpeechStream) -> tuple[np.ndarray, SynthesisFailed | None]:
    """What a listener gets, and how it ended."""
    pieces = [np.zeros(0, np.float32)]
    try:
        async for samples in stream.samples():
            pieces.append(samples)
    except SynthesisFailed as error:
        return np.concatenate(pieces), error
    return np.concatenate(pieces), None


def spoken(
    token2wav: Token2Wav, streams: dict[int, tuple[OpenedVoice, list[int]]]
) -> dict[int, tuple[np.ndarray, SynthesisFailed | None]]:
    """Streams by seed, fed side by side a few tokens at a time."""

    async def run() -> dict[int, tuple[np.ndarray, SynthesisFailed | None]]:
        scheduler = StreamScheduler(EagerSteps(token2wav), PLAN)
        scheduler.start()
        try:
            opened = {seed: scheduler.open(voice, seed=seed) for seed, (voice, _) in streams.items()}
            listeners = [asyncio.create_task(heard(stream)) for stream in opened.values()]
            for start in range(0, max(len(ids) for _, ids in streams.values()), 5):
                for seed, (_, ids) in streams.items():
                    opened[seed].feed(ids[start : start + 5])
                await asyncio.sleep(0)
            for stream in opened.values():
                stream.finish()
            return dict(zip(opened, await asyncio.gather(*listeners), strict=True))
        finally:
            await scheduler.close()

    return asyncio.run(asyncio.wait_for(run(), 60))


def assert_sounds_like(ours: np.ndarray, alone: np.ndarray) -> None:
    assert ours.shape == alone.shape
    assert signal_to_noise_db(torch.from_numpy(ours), torch.from_numpy(alone)) > 40


@pytest.mark.parametrize(("bad_id", "words"), [(POISON, "not finite"), (6561, "6561"), (-1, "-1"), (2**40, "outside")])
def test_a_stream_that_breaks_ends_alone_and_the_others_are_as_alone(
    poisoned: Token2Wav, voice: OpenedVoice, bad_id: int, words: str
) -> None:
    healthy = {seed: (voice, tokens(60, seed=seed)) for seed in (1, 2)}
    alone = {seed: spoken(poisoned, {seed: stream})[seed][0] for seed, stream in healthy.items()}
    ids = tokens(60, seed=3)
    broken = {3: (voice, [*ids[:40], bad_id, *ids[41:]]), 4: (voice, [bad_id, *ids])}
    made = spoken(poisoned, {3: broken[3], **healthy, 4: broken[4]})
    for seed in healthy:
        samples, error = made[seed]
        assert error is None
        assert_sounds_like(samples, alone[seed])
    samples, error = made[3]
    assert error is not None
    assert words in error.message
    assert 0 < samples.size < tokens_to_samples(40)
    assert np.isfinite(samples).all()
    samples, error = made[4]
    assert error is not None
    assert samples.size == 0


def test_a_voice_that_breaks_later_ends_its_own_streams_alone(poisoned: Token2Wav, voice: OpenedVoice) -> None:
    flow = voice.flow
    sick = replace(flow, estimator=replace(flow.estimator, keys_values=flow.estimator.keys_values * 1e38))
    ids = tokens(30, seed=1)
    alone = spoken(poisoned, {1: (voice, ids)})[1][0]
    made = spoken(poisoned, {2: (OpenedVoice(sick), ids), 1: (voice, ids)})
    assert made[2][1] is not None
    assert_sounds_like(made[1][0], alone)


@pytest.mark.parametrize("last", [False, True])
def test_a_row_of_a_batch_is_the_same_to_the_bit_whether_its_neighbour_breaks_or_not(
    poisoned: Token2Wav, voice: OpenedVoice, last: bool
) -> None:
    ids = torch.tensor([tokens(13, seed=seed) for seed in (1, 2, 3)])
    broken_ids = ids.clone()
    broken_ids[1, 5] = POISON
    states = [poisoned.start(voice, seed=seed) for seed in (1, 2, 3)]
    samples, after = poisoned.step(ids, states, last=last)
    beside, after_beside = poisoned.step(broken_ids, states, last=last)
    assert beside[1].isnan().all()
    for row in (0, 2):
        assert torch.equal(beside[row], samples[row])
        assert torch.equal(after_beside[row].flow.estimator.keys_values, after[row].flow.estimator.keys_values)
        assert torch.equal(after_beside[row].vocoder.mel, after[row].vocoder.mel)


def test_a_row_with_one_bad_sample_is_bad_from_end_to_end(poisoned: Token2Wav, voice: OpenedVoice) -> None:
    ids = torch.tensor([tokens(13, seed=seed) for seed in (1, 2)])
    _, states = poisoned.step(ids, [poisoned.start(voice, seed=seed) for seed in (1, 2)], last=False)
    speech = states[0].vocoder.speech.clone()
    speech[0, 5] = torch.nan
    sick = replace(states[0], vocoder=replace(states[0].vocoder, speech=speech))
    samples, _ = poisoned.step(ids, [sick, states[1]], last=False)
    healthy, _ = poisoned.step(ids, states, last=False)
    assert samples[0].isnan().all()
    assert torch.equal(samples[1], healthy[1])


@pytest.mark.parametrize("field", ["prompt_mel", "speaker"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30, 3e38])
def test_a_voice_with_numbers_beyond_sound_is_refused_or_gives_finite_sound(
    poisoned: Token2Wav, field: str, value: float
) -> None:
    drawn = torch.Generator().manual_seed(0)
    features = VoiceFeatures(
        prompt_tokens=torch.tensor(tokens(20, seed=0)),
        prompt_mel=torch.randn(40, 80, generator=drawn) - 5,
        speaker=torch.randn(192, generator=drawn),
    )
    getattr(features, field).view(-1)[:40] = value
    try:
        voice = poisoned.open_voice(features)
    except SynthesisFailed as error:
        assert "finite" in error.message
        return
    samples, _ = poisoned.step(torch.tensor([tokens(10, seed=1)]), [poisoned.start(voice, seed=1)], last=True)
    assert samples.isfinite().all()
