"""Which chunks may share a step on a CPU, and what comes out of it."""

from __future__ import annotations

import pytest
import torch
from speech_parts import FaultyToken2Wav
from stream_parts import tokens

from sidecar.errors import SynthesisFailed
from sidecar.streaming.chunking import Chunk
from sidecar.streaming.steps import ANY_LANE, EagerSteps
from sidecar.timebase import tokens_to_samples
from sidecar.token2wav.state import OpenedVoice


def chunk(new_tokens: int, *, last: bool = False, seed: int = 0) -> Chunk:
    return Chunk(tuple(tokens(new_tokens + 3 * (not last), seed)), new_tokens, last=last)


def test_chunks_share_a_step_if_they_are_equally_long_and_their_streams_hold_equally_much(
    token2wav: FaultyToken2Wav, voice: OpenedVoice
) -> None:
    steps = EagerSteps(token2wav)
    new, newer, old = [steps.open(voice, seed=seed) for seed in (1, 2, 3)]
    steps.submit([(old, chunk(8))], lane=ANY_LANE)
    assert steps.shareable((new, chunk(8)), (newer, chunk(8, seed=1)))
    assert not steps.shareable((new, chunk(8)), (newer, chunk(9)))
    assert not steps.shareable((new, chunk(8)), (newer, chunk(11, last=True))), "no look-ahead, though as many tokens"
    assert not steps.shareable((new, chunk(8)), (old, chunk(8)))


def test_a_step_moves_its_streams_and_gives_each_its_own_samples(
    token2wav: FaultyToken2Wav, voice: OpenedVoice
) -> None:
    steps = EagerSteps(token2wav)
    rows = [(steps.open(voice, seed=seed), chunk(8, seed=seed)) for seed in (1, 2, 3)]
    samples = steps.submit(rows, lane=ANY_LANE).wait()
    assert [row.size for row in samples] == [tokens_to_samples(8 - 4)] * 3
    assert all(row.base is None for row in samples), "a view would keep the others' sound alive"
    assert [playing.state.frames_done for playing, _ in rows] == [16] * 3


def test_a_step_that_cannot_begin_moves_nobody(token2wav: FaultyToken2Wav, voice: OpenedVoice) -> None:
    steps = EagerSteps(token2wav)
    well, ill = [steps.open(voice, seed=seed) for seed in (1, 2)]
    with pytest.raises(SynthesisFailed, match="6561"):
        steps.submit([(well, chunk(8)), (ill, Chunk((6561,) * 11, 8, last=False))], lane=ANY_LANE)
    assert well.state.frames_done == 0
    (samples,) = steps.submit([(well, chunk(8))], lane=ANY_LANE).wait()
    assert torch.from_numpy(samples).isfinite().all()
