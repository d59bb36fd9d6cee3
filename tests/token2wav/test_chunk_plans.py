"""Any chunk sizes from one token up: the flow hears what it should, and every token becomes 960 samples, once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_token2wav import speech_tokens, tiny_config, tiny_flow, tiny_token2wav, voice_of
from torch import Tensor
from whole_flow import WholeFlow, newest_visible, reference_visible

from sidecar.streaming.chunking import Chunk, Chunker, ChunkPlan
from sidecar.timebase import tokens_to_samples
from sidecar.token2wav.flow import Flow
from sidecar.token2wav.history import PAST_FRAMES, REFERENCE, RecentHistory
from sidecar.token2wav.noise import Noise, RecordedNoise, SeededNoise

LOOKAHEAD = 3
STEPS = 2
#: The worst of 300 random plans was 1.3e-5 away.
TOLERANCE = 5e-5
NOISE = SeededNoise()
NETWORK = tiny_flow(steps=STEPS).network
WHOLE = WholeFlow(NETWORK.state_dict(), tiny_config(steps=STEPS))
TOKEN2WAV = tiny_token2wav(steps=1)
VOICE = TOKEN2WAV.open_voice(voice_of(5))

#: New tokens of the chunks that are not last, then of the last: with chunks before it, it holds their look-ahead.
PLANS = st.tuples(st.lists(st.integers(1, 30), max_size=8), st.integers(1, 30)).map(
    lambda plan: [*plan[0], plan[1] + LOOKAHEAD * bool(plan[0])]
)


def streamed(flow: Flow, noise: Noise, prompt_tokens: int, tokens: Tensor, chunks: Sequence[int]) -> Tensor:
    """The mel (80, T) of tokens (N,) spoken in these chunks, as the flow gives it chunk by chunk."""
    voice = voice_of(prompt_tokens)
    _, state = flow.open_voice(voice, noise.prompt_mel(2 * prompt_tokens, 80)[None])
    mels, done = [], 0
    for index, chunk in enumerate(chunks):
        last = index == len(chunks) - 1
        fed = tokens[None, done : done + chunk + (0 if last else LOOKAHEAD)]
        drawn = noise.speech_mel(9, 2 * prompt_tokens, state.frames_done[0], 2 * chunk, 80)
        mel, (state,) = flow.step(fed, [state], drawn[None], last=last)
        mels.append(mel[0])
        done += chunk
    return torch.cat(mels, dim=1)


def whole(prompt_tokens: int, tokens: Tensor, noise: Tensor, tokens_visible: Tensor, frames_visible: Tensor) -> Tensor:
    voice = voice_of(prompt_tokens)
    with torch.inference_mode():
        mu = WHOLE.mu(voice.prompt_tokens, tokens, tokens_visible)
        return WHOLE.mel(mu, voice, noise, frames_visible)[:, 2 * prompt_tokens :]


def in_frames(chunks: Sequence[int]) -> list[int]:
    return [2 * chunk for chunk in chunks]


@settings(max_examples=25, deadline=None)
@given(
    chunks=PLANS,
    prompt_tokens=st.integers(3, 20),
    past_frames=st.one_of(st.just(PAST_FRAMES), st.integers(0, 40)),
    past_tokens=st.one_of(st.just(750), st.integers(0, 40)),
)
def test_a_streamed_flow_is_the_whole_computation_under_what_each_chunk_sees(
    chunks: list[int], prompt_tokens: int, past_frames: int, past_tokens: int
) -> None:
    tokens = speech_tokens(sum(chunks), seed=sum(chunks))
    flow = Flow(NETWORK, history=RecentHistory(past_frames=past_frames, past_tokens=past_tokens))
    noise = torch.cat([NOISE.prompt_mel(2 * prompt_tokens, 80), NOISE.speech_mel(9, 0, 0, 2 * len(tokens), 80)], dim=1)
    expected = whole(
        prompt_tokens,
        tokens,
        noise,
        newest_visible(prompt_tokens, chunks, past_tokens),
        newest_visible(2 * prompt_tokens, in_frames(chunks), past_frames),
    )
    mel = streamed(flow, NOISE, prompt_tokens, tokens, chunks)
    torch.testing.assert_close(mel, expected, atol=TOLERANCE, rtol=0)


@settings(max_examples=15, deadline=None)
@given(chunks=PLANS, prompt_tokens=st.sampled_from([3, 20, 49, 51, 70]))
def test_the_reference_policy_is_the_whole_computation_under_the_references_cut(
    chunks: list[int], prompt_tokens: int
) -> None:
    tokens, prompt = speech_tokens(sum(chunks), seed=sum(chunks)), 2 * prompt_tokens
    recorded = NOISE.speech_mel(1, 0, 0, prompt + 2 * sum(chunks), 80)
    starts = [prompt + min(done, 100) for done in accumulate(in_frames(chunks)[:-1], initial=0)]
    pieces = [recorded[:, start : start + 2 * chunk] for start, chunk in zip(starts, chunks, strict=True)]
    everything_before = newest_visible(prompt_tokens, chunks, sum(chunks))
    expected = whole(
        prompt_tokens,
        tokens,
        torch.cat([recorded[:, :prompt], *pieces], dim=1),
        everything_before,
        reference_visible(prompt, in_frames(chunks), 100),
    )
    mel = streamed(Flow(NETWORK, history=REFERENCE), RecordedNoise(recorded), prompt_tokens, tokens, chunks)
    torch.testing.assert_close(mel, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("more", [1, 2, 3])
def test_a_chunk_hears_three_tokens_ahead_and_no_more(more: int) -> None:
    flow, tokens = Flow(NETWORK), speech_tokens(20)
    mel = streamed(flow, NOISE, 5, tokens, [10, 10])[:, :20]
    near, far = tokens.clone(), tokens.clone()
    near[9 + more] = (near[9 + more] + 1) % 257
    far[13] = (far[13] + 1) % 257
    assert not torch.equal(streamed(flow, NOISE, 5, near, [10, 10])[:, :20], mel)
    assert torch.equal(streamed(flow, NOISE, 5, far, [10, 10])[:, :20], mel)


def test_the_encoder_hears_as_the_reference_until_its_window_of_30_seconds_is_full() -> None:
    ours, reference = Flow(NETWORK), Flow(NETWORK, history=REFERENCE)
    tokens, chunk, done, differences = speech_tokens(750 + 2 * 150 + LOOKAHEAD), 150, 0, []
    states = [flow.open_voice(voice_of(5), NOISE.prompt_mel(10, 80)[None])[1] for flow in (ours, reference)]
    while done + chunk + LOOKAHEAD <= len(tokens):
        fed = tokens[None, done : done + chunk + LOOKAHEAD]
        noise = NOISE.speech_mel(9, 10, 2 * done, 2 * chunk, 80)[None]
        own, theirs = (ours.encode(fed, state, last=False).mu for state in states)
        states = [
            ours.step(fed, states[:1], noise, last=False)[1][0],
            reference.step(fed, states[1:], noise, last=False)[1][0],
        ]
        differences.append((own - theirs).abs().max().item())
        done += chunk
    assert max(differences[:-1]) < 1e-5, "up to the chunk that follows 750 tokens"
    assert differences[-1] > 1e-3
    assert len(states[0].encoder.tokens[0]) == 5 + 750 < len(states[1].encoder.tokens[0])


def taken(plan: ChunkPlan, tokens: Sequence[int], pieces: Sequence[int]) -> list[Chunk]:
    """What a chunker makes of tokens that come in pieces of these sizes, then all that is left."""
    chunker = Chunker(plan, lookahead_tokens=LOOKAHEAD)
    chunks, borders = [], [*accumulate(pieces, initial=0), len(tokens)]
    for start, end in pairwise(borders):
        chunker.feed(tokens[start:end])
        while chunker.peek() is not None:
            chunks.append(chunker.take())
    chunker.finish()
    while chunker.peek() is not None:
        chunks.append(chunker.take())
    return chunks


@settings(max_examples=20, deadline=None)
@given(
    count=st.integers(1, 100),
    first=st.integers(1, 40),
    growth=st.integers(0, 40),
    pieces=st.lists(st.integers(0, 40), max_size=8),
)
def test_every_token_becomes_960_samples_once_under_any_plan(
    count: int, first: int, growth: int, pieces: list[int]
) -> None:
    tokens = speech_tokens(count).tolist()
    state, samples, spoken = TOKEN2WAV.start(VOICE, seed=1), 0, 0
    chunks = taken(ChunkPlan(first, first + growth), tokens, pieces)
    for chunk in chunks:
        ahead = 0 if chunk.last else LOOKAHEAD
        assert list(chunk.tokens) == tokens[spoken : spoken + chunk.new_tokens + ahead]
        sound, (state,) = TOKEN2WAV.step(torch.tensor([chunk.tokens]), [state], last=chunk.last)
        assert sound.isfinite().all()
        samples, spoken = samples + sound.shape[1], spoken + chunk.new_tokens
        assert samples <= tokens_to_samples(spoken), "sound came before its token was spoken"
    assert [chunk.last for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert spoken == count
    assert samples == tokens_to_samples(count)


def test_a_first_chunk_of_one_token_is_heard_once_there_are_more() -> None:
    state, tokens, sizes = TOKEN2WAV.start(VOICE, seed=1), speech_tokens(30), []
    for chunk in taken(ChunkPlan(1, 25), tokens.tolist(), []):
        sound, (state,) = TOKEN2WAV.step(torch.tensor([chunk.tokens]), [state], last=chunk.last)
        sizes.append(sound.shape[1])
    assert sizes[0] == 0
    assert sum(sizes) == tokens_to_samples(30)


@dataclass(frozen=True)
class WrittenDown(SeededNoise):
    """The same noise, and the frames (first, end) it was asked for."""

    mel_frames: list[tuple[int, int]] = field(default_factory=list)
    source_frames: list[tuple[int, int]] = field(default_factory=list)

    def speech_mel(self, seed: int, prompt_frames: int, first_frame: int, frames: int, mel_bins: int, /) -> Tensor:
        self.mel_frames.append((first_frame, first_frame + frames))
        return super().speech_mel(seed, prompt_frames, first_frame, frames, mel_bins)

    def source(self, seed: int, first_frame: int, frames: int) -> Tensor:
        self.source_frames.append((first_frame, first_frame + frames))
        return super().source(seed, first_frame, frames)


def test_each_frame_has_the_noise_of_its_place_in_the_stream() -> None:
    noise = WrittenDown()
    token2wav, held = replace(TOKEN2WAV, noise=noise), []
    state = token2wav.start(VOICE, seed=1)
    for chunk in taken(ChunkPlan(1, 25), speech_tokens(40).tolist(), []):
        held.append(state.held_frames)
        _, (state,) = token2wav.step(torch.tensor([chunk.tokens]), [state], last=chunk.last)
    borders = (0, 2, 4, 8, 14, 22, 34, 52, 80)
    assert noise.mel_frames == list(pairwise(borders))
    again = zip(noise.mel_frames, held, strict=True)
    assert noise.source_frames == [(first - frames, end) for (first, end), frames in again]
