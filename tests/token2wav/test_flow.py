"""The flow in chunks and in batches: what a stream hears does not depend on who shares its step."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from tiny_token2wav import speech_tokens, tiny_flow, voice_of
from torch import Tensor

from sidecar.token2wav import Token2Wav
from sidecar.token2wav.flow import Flow
from sidecar.token2wav.history import REFERENCE, RecentHistory
from sidecar.token2wav.noise import SeededNoise
from sidecar.token2wav.state import FlowState, split, stack
from sidecar.token2wav.synthetic import write_token2wav

NOISE = SeededNoise()


@pytest.fixture(scope="module")
def flow() -> Flow:
    return tiny_flow(steps=3)


def opened(flow: Flow, prompt_tokens: int, *, seed: int = 0) -> FlowState:
    return flow.open_voice(voice_of(prompt_tokens, seed=seed), NOISE.prompt_mel(2 * prompt_tokens, 80)[None])[1]


def noise_for(states: list[FlowState], seeds: list[int], spoken: int) -> Tensor:
    return torch.stack(
        [
            NOISE.speech_mel(seed, state.prompt_frames[0], state.frames_done[0], 2 * spoken, 80)
            for seed, state in zip(seeds, states, strict=True)
        ]
    )


def spoken_by(flow: Flow, state: FlowState, chunks: list[int], *, seed: int = 0) -> tuple[Tensor, FlowState]:
    """The mel of so many tokens a chunk, none of them the last, and the state after."""
    tokens, done, mels = speech_tokens(sum(chunks) + 3, seed=seed), 0, []
    for chunk in chunks:
        fed = tokens[None, done : done + chunk + 3]
        mel, (state,) = flow.step(fed, [state], noise_for([state], [seed], chunk), last=False)
        mels.append(mel)
        done += chunk
    return torch.cat(mels, dim=-1), state


def test_streams_of_other_voices_and_lengths_in_one_step_sound_as_alone(flow: Flow) -> None:
    prompts, before, seeds = [40, 7, 90], [[25, 25, 25], [], [3, 60, 1, 1]], [5, 6, 7]
    states = [
        spoken_by(flow, opened(flow, prompt, seed=prompt), chunks, seed=seed)[1]
        if chunks
        else opened(flow, prompt, seed=prompt)
        for prompt, chunks, seed in zip(prompts, before, seeds, strict=True)
    ]
    for last in (False, False, True):
        tokens = torch.stack([speech_tokens(16, seed=seed + 50) for seed in seeds])
        noise = noise_for(states, seeds, 16 if last else 13)
        together, after = flow.step(tokens, states, noise, last=last)
        for row, state in enumerate(states):
            alone, (state_alone,) = flow.step(tokens[row : row + 1], [state], noise[row : row + 1], last=last)
            torch.testing.assert_close(together[row : row + 1], alone, atol=2e-5, rtol=0)
            assert_same_state(after[row], state_alone)
        states = after


def assert_same_state(one: FlowState, other: FlowState) -> None:
    for part in ("encoder", "estimator"):
        for field in dataclasses.fields(getattr(one, part)):
            ours, theirs = (getattr(getattr(state, part), field.name) for state in (one, other))
            if isinstance(ours, Tensor):
                assert ours.shape == theirs.shape, field.name
                assert not ours.numel() or (ours - theirs).abs().max() < 5e-5, field.name
            else:
                assert ours == theirs, field.name
    assert (one.tokens_done, one.prompt_tokens) == (other.tokens_done, other.prompt_tokens)


def test_stacked_states_split_into_what_they_were(flow: Flow) -> None:
    states = [spoken_by(flow, opened(flow, prompt), [10])[1] for prompt in (5, 30, 12)]
    for before, after in zip(states, split(stack(states)), strict=True):
        assert_same_state(before, after)


def test_a_state_is_unchanged_by_the_step_that_reads_it(flow: Flow) -> None:
    _, state = spoken_by(flow, opened(flow, 20), [10, 20])
    first, _ = spoken_by(flow, state, [5, 5], seed=1)
    second, _ = spoken_by(flow, state, [5, 5], seed=1)
    torch.testing.assert_close(first, second, atol=0, rtol=0)


def test_a_long_stream_keeps_the_prompt_and_its_newest_frames() -> None:
    flow = tiny_flow(RecentHistory(past_frames=20, past_tokens=15), steps=1)
    _, state = spoken_by(flow, opened(flow, 8), [4, 9, 1, 30])
    done = 8 + 44
    assert state.encoder.tokens == ((*range(8), *range(done - 15, done)),)
    assert state.estimator.frames == ((*range(16), *range(2 * done - 20, 2 * done)),)
    assert state.encoder.token_keys_values.shape[-2] == 8 + 15
    assert state.encoder.frame_keys_values.shape[-2] == 2 * (8 + 15)
    assert state.estimator.keys_values.shape[-2] == 16 + 20


def test_a_full_stream_takes_no_more_memory_after_more_speech() -> None:
    flow = tiny_flow(RecentHistory(past_frames=20, past_tokens=15), steps=1)
    _, state = spoken_by(flow, opened(flow, 8), [10, 10])
    _, later = spoken_by(flow, state, [10] * 10)
    for part in ("encoder", "estimator"):
        for field in dataclasses.fields(getattr(state, part)):
            ours, theirs = (getattr(getattr(each, part), field.name) for each in (state, later))
            if isinstance(ours, Tensor):
                assert ours.shape == theirs.shape
                assert theirs.untyped_storage().nbytes() == theirs.nbytes, f"{field.name} holds on to a larger tensor"


def test_bounded_history_equals_the_reference_until_it_is_full() -> None:
    ours, reference = tiny_flow(steps=2), tiny_flow(REFERENCE, steps=2)
    chunks = [10, 20, 20]  # 100 frames: all of it is in view of every chunk
    mel, state = spoken_by(ours, opened(ours, 60), chunks)
    recorded_way, reference_state = spoken_by(reference, opened(reference, 60), chunks)
    torch.testing.assert_close(mel, recorded_way, atol=2e-5, rtol=0)
    later, later_reference = (
        spoken_by(each, after, [10, 10])[0] for each, after in ((ours, state), (reference, reference_state))
    )
    torch.testing.assert_close(later[..., :20], later_reference[..., :20], atol=2e-5, rtol=0)
    assert not torch.allclose(later[..., 20:], later_reference[..., 20:], atol=1e-3)


def test_a_last_chunk_speaks_its_look_ahead_too(flow: Flow) -> None:
    state = opened(flow, 20)
    for tokens in (1, 3, 11):
        mel, _ = flow.step(speech_tokens(tokens)[None], [state], noise_for([state], [0], tokens), last=True)
        assert mel.shape == (1, 80, 2 * tokens)


def test_everything_fed_at_once_gives_the_mel_of_prompt_and_speech(flow: Flow) -> None:
    voice = voice_of(12)
    mel = flow.whole(voice, speech_tokens(9)[None], NOISE.prompt_mel(42, 80)[None])
    assert mel.shape == (1, 80, 42)
    assert mel.isfinite().all()


@pytest.mark.parametrize(("dtype", "most"), [(torch.bfloat16, 0.08), (torch.float16, 0.01)])
def test_sixteen_bits_stay_close_to_float32(dtype: torch.dtype, most: float) -> None:
    wide, narrow = tiny_flow(), tiny_flow(dtype=dtype)
    expected, _ = spoken_by(wide, opened(wide, 30), [10, 20])
    mel, state = spoken_by(narrow, opened(narrow, 30), [10, 20])
    assert mel.dtype == torch.float32
    assert state.estimator.keys_values.dtype == dtype
    assert ((mel - expected).norm() / expected.norm()).item() < most


def test_a_length_not_met_before_leaves_no_plan_behind(tmp_path: Path) -> None:
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(True)
    try:
        write_token2wav(tmp_path, "tiny")
        Token2Wav.from_folder(tmp_path / "token2wav")
        assert not torch.backends.cuda.cudnn_sdp_enabled()
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)
