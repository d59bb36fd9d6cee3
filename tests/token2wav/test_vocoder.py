"""The vocoder as a streaming module, by either way to join chunks: lengths, state, batches. Tiny random weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sidecar.token2wav.overlap import OVERLAP_FRAMES, OVERLAP_SAMPLES, complementary_fade, cross_fade, reference_fade
from sidecar.token2wav.seams import CONTINUOUS, REFERENCE, ContinuousSeams, SeamPolicy, VocoderState
from sidecar.token2wav.vocoder import HiftConfig, Vocoder
from sidecar.token2wav.weights import load_vocoder

both_ways = pytest.mark.parametrize("policy", [CONTINUOUS, REFERENCE], ids=["continuous", "reference"])

WEIGHTS = Path(__file__).parents[1] / "golden" / "data" / "hift" / "hift.safetensors"


@pytest.fixture(scope="module")
def vocoder() -> Vocoder:
    return load_vocoder(WEIGHTS)


def mel_of(frames: int, seed: int = 0, batch: int = 1) -> Tensor:
    return torch.randn(batch, 80, frames, generator=torch.Generator().manual_seed(seed))


def noise_of(frames: int, seed: int = 0, batch: int = 1) -> Tensor:
    """(batch, 480 frames, 9): noise of a stream, to be cut by frame."""
    return torch.randn(batch, 480 * frames, 9, generator=torch.Generator().manual_seed(1000 + seed))


def tensors(state: VocoderState) -> list[Tensor]:
    return [value for value in vars(state).values() if isinstance(value, Tensor)]


@torch.inference_mode()
def stream(
    vocoder: Vocoder, mel: Tensor, noise: Tensor, chunks: Sequence[int], policy: SeamPolicy = CONTINUOUS
) -> tuple[list[Tensor], VocoderState]:
    """All of `mel` in chunks of so many frames, the last of them last."""
    state, done, spoken = policy.initial_state(vocoder, mel.shape[0]), 0, []
    for index, frames in enumerate(chunks):
        heard = noise[:, 480 * (done - state.held_frames) : 480 * (done + frames)]
        new, last = mel[..., done : done + frames], index == len(chunks) - 1
        samples, state = policy.step(vocoder, new, state, heard, last=last)
        spoken.append(samples)
        done += frames
    return spoken, state


@both_ways
@settings(max_examples=25, deadline=None)
@given(chunks=st.lists(st.integers(0, 23), min_size=1, max_size=6))
def test_any_chunk_plan_gives_480_samples_a_frame(policy: SeamPolicy, vocoder: Vocoder, chunks: list[int]) -> None:
    total = sum(chunks)
    spoken, state = stream(vocoder, mel_of(total), noise_of(total), chunks, policy)
    assert sum(part.shape[-1] for part in spoken) == 480 * total
    assert state.frames_done == (total,)
    assert torch.isfinite(torch.cat(spoken, dim=-1)).all()


@both_ways
def test_a_stream_runs_eight_frames_behind(policy: SeamPolicy, vocoder: Vocoder) -> None:
    spoken, _ = stream(vocoder, mel_of(40), noise_of(40), [10, 20, 10], policy)
    assert [part.shape[-1] for part in spoken] == [480 * 2, 480 * 20, 480 * 18]


@both_ways
@pytest.mark.parametrize("first", [1, 3, 7])
def test_frames_too_few_for_a_fade_are_held_back_and_spoken_with_the_next(
    policy: SeamPolicy, vocoder: Vocoder, first: int
) -> None:
    mel, noise = mel_of(30), noise_of(30)
    short_start, _ = stream(vocoder, mel, noise, [first, 20 - first, 10], policy)
    plain_start, _ = stream(vocoder, mel, noise, [20, 10], policy)
    assert short_start[0].shape[-1] == 0
    torch.testing.assert_close(torch.cat(short_start, -1), torch.cat(plain_start, -1), atol=1e-5, rtol=0)


@both_ways
def test_a_last_chunk_without_frames_hands_out_what_was_held(policy: SeamPolicy, vocoder: Vocoder) -> None:
    mel, noise = mel_of(20), noise_of(20)
    (_, held), _ = stream(vocoder, mel, noise, [20, 0], policy)
    whole = policy.whole(vocoder, mel, noise)
    torch.testing.assert_close(held, whole[:, -OVERLAP_SAMPLES:], atol=1e-5, rtol=0)


@both_ways
def test_one_chunk_equals_the_whole_utterance(policy: SeamPolicy, vocoder: Vocoder) -> None:
    mel, noise = mel_of(25), noise_of(25)
    (spoken,), _ = stream(vocoder, mel, noise, [25], policy)
    torch.testing.assert_close(spoken, policy.whole(vocoder, mel, noise), atol=0, rtol=0)


@both_ways
def test_a_stream_sounds_the_same_alone_and_in_a_batch(policy: SeamPolicy, vocoder: Vocoder) -> None:
    mel, noise, chunks = mel_of(34, batch=3), noise_of(34, batch=3), [12, 20, 2]
    together, _ = stream(vocoder, mel, noise, chunks, policy)
    for row in range(3):
        alone, _ = stream(vocoder, mel[row : row + 1], noise[row : row + 1], chunks, policy)
        # rounding of the pitch grows with the phase it is summed to
        torch.testing.assert_close(torch.cat(alone, -1)[0], torch.cat(together, -1)[row], atol=2e-3, rtol=0)


@both_ways
def test_a_broken_stream_leaves_its_neighbours_as_they_are(policy: SeamPolicy, vocoder: Vocoder) -> None:
    mel, noise, chunks = mel_of(30, batch=2), noise_of(30, batch=2), [20, 10]
    sound, _ = stream(vocoder, mel, noise, chunks, policy)
    mel[1, :, 15] = float("nan")
    beside_nan, _ = stream(vocoder, mel, noise, chunks, policy)
    torch.testing.assert_close(torch.cat(beside_nan, -1)[0], torch.cat(sound, -1)[0], atol=0, rtol=0)


@both_ways
def test_states_stacked_and_split_are_the_states(policy: SeamPolicy, vocoder: Vocoder) -> None:
    ends = []
    for seed, chunks in enumerate(([22, 0], [30, 4, 0], [19, 0])):
        mel, noise = mel_of(sum(chunks), seed), noise_of(sum(chunks), seed)
        ends.append(stream(vocoder, mel, noise, chunks, policy)[1])
    stacked = VocoderState.stack(ends)
    assert stacked.frames_done == (22, 34, 19)
    for before, after in zip(ends, stacked.split(), strict=True):
        assert before.frames_done == after.frames_done
        assert all(torch.equal(one, other) for one, other in zip(tensors(before), tensors(after), strict=True))


@both_ways
def test_a_step_leaves_the_state_it_was_given_as_it_was(policy: SeamPolicy, vocoder: Vocoder) -> None:
    _, state = stream(vocoder, mel_of(20), noise_of(20), [20], policy)
    kept = [tensor.clone() for tensor in tensors(state)]
    first, _ = policy.step(vocoder, mel_of(10, 1), state, noise_of(state.held_frames + 10, 1), last=False)
    again, _ = policy.step(vocoder, mel_of(10, 1), state, noise_of(state.held_frames + 10, 1), last=False)
    assert torch.equal(first, again)
    assert all(torch.equal(a, b) for a, b in zip(kept, tensors(state), strict=True))


@both_ways
def test_a_state_is_no_view_of_the_chunk_it_came_from(policy: SeamPolicy, vocoder: Vocoder) -> None:
    _, state = stream(vocoder, mel_of(50), noise_of(50), [50], policy)
    for tensor in tensors(state):
        assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()


@both_ways
def test_noise_for_another_length_is_named(policy: SeamPolicy, vocoder: Vocoder) -> None:
    with pytest.raises(AssertionError, match="noise is for 480 samples, the call makes 4800"):
        policy.step(vocoder, mel_of(10), policy.initial_state(vocoder, 1), noise_of(1), last=False)


def test_the_cross_fade_leaves_what_comes_after_the_overlap_alone() -> None:
    new, held = mel_of(50).flatten()[None], mel_of(48, 1).flatten()[None][:, :OVERLAP_SAMPLES]
    joined = cross_fade(new, held, reference_fade())
    assert torch.equal(joined[:, OVERLAP_SAMPLES:], new[:, OVERLAP_SAMPLES:])
    assert not torch.equal(joined[:, :OVERLAP_SAMPLES], new[:, :OVERLAP_SAMPLES])


@pytest.mark.parametrize("samples", [1, 120, OVERLAP_SAMPLES])
def test_the_fade_adds_up_to_1_and_goes_one_way(samples: int) -> None:
    fade_in, fade_out = complementary_fade(samples)
    assert torch.equal(fade_in + fade_out, torch.ones(samples))
    assert (fade_in.diff() >= 0).all() and 0 < fade_in[0] < 1


def test_a_stream_of_one_policy_is_refused_by_the_other(vocoder: Vocoder) -> None:
    with pytest.raises(AssertionError, match="goes on with the seams it began with"):
        REFERENCE.step(vocoder, mel_of(1), CONTINUOUS.initial_state(vocoder, 1), noise_of(1), last=False)


@pytest.mark.parametrize(("context", "fade", "words"), [(1, 120, "below 2"), (8, -1, "outside 0"), (8, 3841, "3840")])
def test_seams_that_cannot_be_are_refused(context: int, fade: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ContinuousSeams(context, fade)


def test_the_reference_fade_adds_up_to_1_08() -> None:
    fade_in, fade_out = reference_fade()
    torch.testing.assert_close(fade_in + fade_out, torch.full_like(fade_in, 1.08), atol=1e-3, rtol=0)


def test_the_default_sizes_are_the_published_vocoder() -> None:
    with torch.device("meta"):
        names = {name: tuple(value.shape) for name, value in Vocoder(HiftConfig()).state_dict().items()}
    assert names["conv_pre.weight"] == (512, 80, 7)
    assert names["ups.2.weight"] == (128, 64, 7)
    assert names["source_downs.0.weight"] == (256, 18, 30)
    assert names["resblocks.8.convs2.2.weight"] == (64, 64, 11)
    assert len(names) == 328 - 82  # 82 convolutions are weight-normalised: two tensors in the file, one here
    assert OVERLAP_FRAMES == 8
