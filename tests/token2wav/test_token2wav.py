"""Tokens to samples: lengths, seeds, batches and what goes wrong, on real parts at tiny size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_token2wav import signal_to_noise_db, speech_tokens, tiny_token2wav, voice_of
from torch import Tensor

from sidecar.errors import SynthesisFailed
from sidecar.token2wav import OpenedVoice, StreamState, Token2Wav, VoiceFeatures
from sidecar.token2wav.synthetic import write_token2wav

TOKEN2WAV = tiny_token2wav()
VOICE = TOKEN2WAV.open_voice(voice_of(10))


def spoken(
    tokens: Tensor,
    chunks: Sequence[int],
    *,
    seed: int = 0,
    voice: OpenedVoice = VOICE,
    token2wav: Token2Wav = TOKEN2WAV,
) -> list[Tensor]:
    """tokens (N,) spoken in non-last chunks of so many, then what is left as the last chunk."""
    state, done, sounds = token2wav.start(voice, seed=seed), 0, []
    for chunk in chunks:
        samples, (state,) = token2wav.step(tokens[None, done : done + chunk + 3], [state], last=False)
        sounds.append(samples[0])
        done += chunk
    samples, _ = token2wav.step(tokens[None, done:], [state], last=True)
    return [*sounds, samples[0]]


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 30), max_size=5), st.integers(3, 20))
def test_any_chunk_plan_gives_exactly_960_samples_a_token(chunks: list[int], rest: int) -> None:
    tokens = speech_tokens(sum(chunks) + rest)
    sounds = spoken(tokens, chunks)
    assert sum(len(sound) for sound in sounds) == 960 * len(tokens)
    assert torch.cat(sounds).abs().max() <= 1


@pytest.mark.parametrize("count", [1, 2, 3, 7, 40])
def test_a_reply_of_one_chunk_is_complete(count: int) -> None:
    assert len(spoken(speech_tokens(count), [])[0]) == 960 * count


def test_a_stream_runs_160_ms_behind_until_its_last_chunk() -> None:
    sounds = spoken(speech_tokens(60), [10, 20, 25])
    assert [len(sound) for sound in sounds] == [960 * 10 - 3840, 960 * 20, 960 * 25, 960 * 5 + 3840]


def test_the_same_seed_gives_the_same_samples() -> None:
    tokens = speech_tokens(40)
    for first, second in zip(spoken(tokens, [10, 20], seed=4), spoken(tokens, [10, 20], seed=4), strict=True):
        assert torch.equal(first, second)


def test_another_seed_gives_other_samples_of_the_same_length() -> None:
    tokens = speech_tokens(40)
    one, other = (torch.cat(spoken(tokens, [10, 20], seed=seed)) for seed in (4, 5))
    assert len(one) == len(other)
    assert (one - other).abs().max() > 1e-3


def test_a_voice_is_opened_the_same_every_time() -> None:
    tokens = speech_tokens(20)
    again = TOKEN2WAV.open_voice(voice_of(10))
    assert torch.equal(spoken(tokens, [])[0], spoken(tokens, [], voice=again)[0])


def test_another_voice_speaks_the_same_tokens_otherwise() -> None:
    tokens = speech_tokens(20)
    other = TOKEN2WAV.open_voice(voice_of(10, seed=1))
    assert (spoken(tokens, [])[0] - spoken(tokens, [], voice=other)[0]).abs().max() > 1e-3


def three_streams() -> list[StreamState]:
    """Other voices, prompt lengths, seeds and positions, all past their first chunk."""
    states = []
    for prompt, before, seed in ((10, [25, 25, 25], 1), (40, [8], 2), (4, [9, 18], 3)):
        state = TOKEN2WAV.start(TOKEN2WAV.open_voice(voice_of(prompt, seed=seed)), seed=seed)
        for chunk in before:
            _, (state,) = TOKEN2WAV.step(speech_tokens(chunk + 3, seed=seed)[None], [state], last=False)
        states.append(state)
    return states


def test_streams_sound_the_same_alone_and_in_a_batch() -> None:
    states = three_streams()
    for last in (False, False, True):
        tokens = torch.stack([speech_tokens(18, seed=row) for row in range(3)])
        together, after = TOKEN2WAV.step(tokens, states, last=last)
        for row, state in enumerate(states):
            alone, _ = TOKEN2WAV.step(tokens[row : row + 1], [state], last=last)
            assert signal_to_noise_db(together[row], alone[0]) > 40
        states = after


def test_first_chunks_of_several_streams_share_a_step() -> None:
    states = [TOKEN2WAV.start(VOICE, seed=seed) for seed in (1, 1, 2)]
    samples, _ = TOKEN2WAV.step(speech_tokens(13).expand(3, 13), states, last=False)
    assert samples.shape == (3, 960 * 10 - 3840)
    assert signal_to_noise_db(samples[0], samples[1]) > 60
    assert (samples[0] - samples[2]).abs().max() > 1e-3


def test_a_step_can_be_tried_again_from_the_state_before() -> None:
    state = three_streams()[0]
    tokens = speech_tokens(28)[None]
    first, _ = TOKEN2WAV.step(tokens, [state], last=False)
    second, _ = TOKEN2WAV.step(tokens, [state], last=False)
    assert torch.equal(first, second)


def test_a_stream_that_breaks_takes_no_other_with_it() -> None:
    states = three_streams()
    flow = replace(states[1].flow, speaker=states[1].flow.speaker * torch.nan)
    poisoned = replace(states[1], flow=flow)
    tokens = torch.stack([speech_tokens(18, seed=row) for row in range(3)])
    samples, _ = TOKEN2WAV.step(tokens, [states[0], poisoned, states[2]], last=False)
    assert samples.isfinite().all(dim=1).tolist() == [True, False, True]
    assert samples[1].isnan().all()
    for row in (0, 2):
        alone, _ = TOKEN2WAV.step(tokens[row : row + 1], [states[row]], last=False)
        assert signal_to_noise_db(samples[row], alone[0]) > 40


@pytest.mark.parametrize("wrong", [-1, 257, 6561])
def test_an_id_without_a_sound_is_refused_by_name(wrong: int) -> None:
    tokens = torch.stack([speech_tokens(13), speech_tokens(13)])
    tokens[1, 4] = wrong
    states = [TOKEN2WAV.start(VOICE, seed=seed) for seed in (1, 2)]
    with pytest.raises(SynthesisFailed, match=f"speech token {wrong} in row 1 is outside 0 to 256"):
        TOKEN2WAV.step(tokens, states, last=False)


@pytest.mark.parametrize(("count", "last", "least"), [(3, False, 4), (0, True, 1)])
def test_a_chunk_without_a_token_to_speak_is_refused(count: int, last: bool, least: int) -> None:
    with pytest.raises(SynthesisFailed, match=f"came with {count} tokens; it needs at least {least}"):
        TOKEN2WAV.step(speech_tokens(count)[None], [TOKEN2WAV.start(VOICE, seed=0)], last=last)


def test_features_that_do_not_fit_are_refused() -> None:
    good = voice_of(10)
    for features, words in (
        (VoiceFeatures(good.prompt_tokens[:2], good.prompt_mel[:4], good.speaker), "has 2 speech tokens"),
        (VoiceFeatures(good.prompt_tokens, good.prompt_mel[:-1], good.speaker), r"prompt_mel is \(19, 80\)"),
        (VoiceFeatures(good.prompt_tokens, good.prompt_mel, good.speaker[:64]), r"speaker is \(64,\)"),
        (VoiceFeatures(good.prompt_tokens + 300, good.prompt_mel, good.speaker), "outside 0 to 256"),
        (VoiceFeatures(good.prompt_tokens, good.prompt_mel * torch.nan, good.speaker), "not finite"),
    ):
        with pytest.raises(SynthesisFailed, match=words):
            TOKEN2WAV.open_voice(features)


def test_float32_is_float32_and_repeats_itself_on_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)
    write_token2wav(tmp_path, "tiny")
    Token2Wav.from_folder(tmp_path / "token2wav")
    assert not torch.backends.cudnn.allow_tf32
    assert torch.backends.cudnn.deterministic


def test_the_whole_path_speaks_every_token_once() -> None:
    whole = TOKEN2WAV.synthesize_whole(voice_of(10), speech_tokens(15)[None], seed=3)
    assert whole.shape == (1, 960 * 15)
    assert whole.isfinite().all()
