"""The GPU's road on a CPU, its kernels interpreted, at tiny size in float32: for each stream what the oracle says."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from gpu_parts import Speech, by_the_oracle, in_steps, speech
from tiny_token2wav import signal_to_noise_db, tiny_flow, tiny_token2wav, voice_of
from torch import Tensor

from sidecar.errors import SynthesisFailed
from sidecar.streaming.chunking import Chunk
from sidecar.token2wav import Token2Wav
from sidecar.token2wav.gpu.step import GpuToken2Wav
from sidecar.token2wav.graphs import CapturedSteps, batch_sizes, token_sizes
from sidecar.token2wav.history import REFERENCE as REFERENCE_HISTORY
from sidecar.token2wav.history import RecentHistory
from sidecar.token2wav.noise import RecordedNoise
from sidecar.token2wav.seams import REFERENCE as REFERENCE_SEAMS
from sidecar.token2wav.state import OpenedVoice

#: Small enough for stream "a" to outgrow them, and for its rings to come round.
WINDOWS = RecentHistory(past_frames=6, past_tokens=5)
#: With the largest last chunk, 2, 4 and 6.
CHUNK_TOKENS = (2, 4)

#: Each word is a step. "c" takes the slot that "x" leaves full of numbers that are not finite, "d" the slot of one that
#: has spoken; the first two steps are of four lines, one of which stays empty.
PLAN = ("abx", "cba", "ad")


@pytest.fixture(scope="module")
def token2wav() -> Token2Wav:
    return Token2Wav(tiny_flow(WINDOWS, steps=2), tiny_token2wav().vocoder)


@pytest.fixture(scope="module")
def voices(token2wav: Token2Wav) -> list[OpenedVoice]:
    return [token2wav.open_voice(voice_of(tokens, seed=tokens)) for tokens in (5, 9, 12)]


@pytest.fixture(scope="module")
def speeches(token2wav: Token2Wav, voices: list[OpenedVoice]) -> dict[str, Speech]:
    broken = replace(voices[0], flow=replace(voices[0].flow, speaker=voices[0].flow.speaker * torch.nan))
    return {
        "a": speech(token2wav, voices[0], (4, 5, 4), seed=1),
        "b": speech(token2wav, voices[1], (3, 4), seed=2),
        "c": speech(token2wav, voices[2], (6,), seed=3),
        "d": speech(token2wav, voices[1], (2,), seed=4),
        "x": speech(token2wav, broken, (3,), seed=5),
    }


def steps_of(token2wav: Token2Wav, *, slots: int = 3) -> CapturedSteps:
    return CapturedSteps(token2wav, slots=slots, chunk_tokens=CHUNK_TOKENS)


@pytest.fixture(scope="module")
def together(token2wav: Token2Wav, speeches: dict[str, Speech]) -> dict[str, Tensor]:
    return in_steps(CapturedSteps(token2wav, slots=4, chunk_tokens=CHUNK_TOKENS), speeches, PLAN)


@pytest.mark.parametrize("name", ["a", "b", "c", "d"])
def test_a_stream_among_others_sounds_as_the_oracle_says(
    token2wav: Token2Wav, speeches: dict[str, Speech], together: dict[str, Tensor], name: str
) -> None:
    alone = by_the_oracle(token2wav, speeches[name])
    assert together[name].shape == alone.shape
    assert signal_to_noise_db(together[name], alone) > 70


def test_a_stream_that_is_not_finite_is_so_from_end_to_end(together: dict[str, Tensor]) -> None:
    assert len(together["x"]) == 3 * 960
    assert together["x"].isnan().all()


def test_a_first_chunk_sounds_the_same_in_its_own_lane(
    token2wav: Token2Wav, speeches: dict[str, Speech], together: dict[str, Tensor]
) -> None:
    alone = in_steps(steps_of(token2wav), {"d": speeches["d"]}, ["d"], lane=1)["d"]
    torch.testing.assert_close(together["d"], alone, rtol=0, atol=1e-4)


def test_when_all_slots_are_taken_a_stream_waits_for_one(token2wav: Token2Wav, voices: list[OpenedVoice]) -> None:
    steps = steps_of(token2wav, slots=2)
    first, second = (steps.open(voices[0], seed=seed) for seed in (1, 2))
    assert first is not None and second is not None
    assert {first.slot, second.slot} == {0, 1}
    assert steps.open(voices[0], seed=3) is None
    steps.close(first)
    third = steps.open(voices[1], seed=3)
    assert third is not None and third.slot == first.slot


def test_a_token_without_a_meaning_is_refused_before_any_kernel_reads_it(
    token2wav: Token2Wav, voices: list[OpenedVoice]
) -> None:
    steps = steps_of(token2wav)
    playing = steps.open(voices[0], seed=1)
    assert playing is not None
    for wrong in (-1, token2wav.speech_token_count):
        with pytest.raises(SynthesisFailed, match=rf"speech token {wrong} is outside 0 to 256"):
            steps.submit([(playing, Chunk((1, wrong), 2, last=True))], lane=0)
    assert playing.tokens_done == 0


def test_every_shape_that_can_come_has_a_step() -> None:
    assert token_sizes((8, 12, 18, 25)) == (8, 12, 18, 25, 27)
    assert token_sizes((25,)) == (25, 27)
    assert batch_sizes(1) == (1,)
    assert batch_sizes(6) == (1, 2, 4, 6)
    assert batch_sizes(32) == (1, 2, 4, 8, 16, 32)


def test_what_the_product_does_not_do_is_refused(token2wav: Token2Wav) -> None:
    others = [
        Token2Wav(tiny_flow(REFERENCE_HISTORY, steps=1), token2wav.vocoder),
        replace(token2wav, seams=REFERENCE_SEAMS),
        replace(token2wav, noise=RecordedNoise(torch.zeros(80, 100))),
    ]
    for other in others:
        with pytest.raises(ValueError, match="the fast road"):
            GpuToken2Wav(other, slots=1, most_tokens=4)
