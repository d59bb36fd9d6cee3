"""The encoder over slots, chunk after chunk, against `Flow.encode` of each stream alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from tiny_token2wav import speech_tokens, tiny_network, voice_of
from torch import Tensor

pytest.importorskip("triton", reason="Triton runs on Linux alone")

from sidecar.timebase import tokens_to_frames
from sidecar.token2wav.flow import Flow
from sidecar.token2wav.gpu.encoder import LONGEST_PROMPT_TOKENS, FusedEncoder
from sidecar.token2wav.gpu.playing import check_voice
from sidecar.token2wav.gpu.rows import Row, Rows
from sidecar.token2wav.gpu.slots import Slots, allocate
from sidecar.token2wav.history import RecentHistory
from sidecar.token2wav.state import FlowState, OpenedVoice
from sidecar.token2wav.upsample_encoder import LOOKAHEAD_TOKENS

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
#: So few that the rings wrap within a few chunks.
PAST_TOKENS, MOST_TOKENS = 11, 7
MEL_BINS = 80


@dataclass
class Stream:
    """One stream on both roads."""

    slot: int
    voice: FlowState
    state: FlowState  # the oracle's
    tokens: Tensor
    chunks: Sequence[int]  # new tokens each; 0 sits a step out

    @classmethod
    def of(cls, flow: Flow, slots: Slots, slot: int, prompt_tokens: int, chunks: Sequence[int]) -> Stream:
        noise = torch.randn(1, MEL_BINS, tokens_to_frames(prompt_tokens), generator=torch.Generator().manual_seed(slot))
        _, voice = flow.open_voice(voice_of(prompt_tokens, seed=slot), noise)
        slots.lookahead_past[slot] = voice.encoder.lookahead_past[0]
        slots.upsample_past[slot] = voice.encoder.upsample_past[0]
        return cls(slot, voice, voice, speech_tokens(sum(chunks), seed=slot), chunks)

    @property
    def done(self) -> int:
        return self.state.tokens_done[0] - self.voice.tokens_done[0]

    def last(self, chunk: int) -> bool:
        return not any(self.chunks[chunk + 1 :])

    def given(self, chunk: int) -> Tensor:
        """New tokens and look-ahead; none where the stream sits out."""
        if not self.chunks[chunk]:
            return self.tokens[:0]
        ahead = 0 if self.last(chunk) else LOOKAHEAD_TOKENS
        return self.tokens[self.done : self.done + self.chunks[chunk] + ahead]

    def row(self, chunk: int) -> Row:
        encoder = self.voice.encoder
        return Row(
            slot=self.slot,
            tokens=self.given(chunk).tolist(),
            last=self.last(chunk),
            prompt_tokens=self.voice.prompt_tokens[0],
            tokens_done=self.done,
            held_frames=0,
            seed=0,
            voice_frames=0,
            voice_tokens=encoder.token_keys_values.data_ptr(),
            voice_upsampled=encoder.frame_keys_values.data_ptr(),
        )

    def step_oracle(self, flow: Flow, chunk: int) -> Tensor:
        """mu (T, M)."""
        given, last = self.given(chunk)[None], self.last(chunk)
        mu = flow.encode(given, self.state, last=last).mu
        _, (self.state,) = flow.step(given, [self.state], torch.zeros_like(mu), last=last)
        return mu[0].T


def step(encoder: FusedEncoder, slots: Slots, rows: Sequence[Row], *, batch: int, tokens: int) -> Tensor:
    lines = Rows.empty(batch, tokens, "cpu")
    lines.write(rows)
    return encoder(Rows(lines.control.to(DEVICE)), slots)


@pytest.fixture(scope="module")
def flow() -> Flow:
    """One flow step: this is about what stands before it."""
    return Flow(tiny_network(steps=1), device=DEVICE, history=RecentHistory(past_tokens=PAST_TOKENS))


@pytest.fixture(scope="module")
def encoder(flow: Flow) -> FusedEncoder:
    return FusedEncoder(flow.network, torch.float32, most_tokens=MOST_TOKENS, past_tokens=PAST_TOKENS)


def fresh_slots(flow: Flow, slots: int) -> Slots:
    return allocate(
        flow.config, slots, most_tokens=MOST_TOKENS, dtype=torch.float32, device=DEVICE, past_tokens=PAST_TOKENS
    )


def test_streams_of_any_voice_position_and_length_share_a_step(flow: Flow, encoder: FusedEncoder) -> None:
    slots = fresh_slots(flow, 5)
    streams = [
        Stream.of(flow, slots, 3, 40, (3, 7, 7, 7, 3)),
        Stream.of(flow, slots, 1, 5, (0, 7, 1, 1, 7)),
        Stream.of(flow, slots, 4, 17, (5, 0, 7, 3, 0)),
        Stream.of(flow, slots, 2, 9, (0, 0, 0, 1, 0)),
    ]
    for chunk in range(5):
        there = [stream for stream in streams if stream.chunks[chunk]]
        # the filling lines and a line longer than any chunk must not matter
        mu = step(encoder, slots, [stream.row(chunk) for stream in there], batch=5, tokens=MOST_TOKENS)
        for place, stream in enumerate(there):
            own = tokens_to_frames(stream.chunks[chunk])
            expected = stream.step_oracle(flow, chunk)
            torch.testing.assert_close(mu[place, :own], expected, atol=2e-5, rtol=1e-4)


def test_a_line_that_only_fills_writes_nothing(flow: Flow, encoder: FusedEncoder) -> None:
    slots = fresh_slots(flow, 2)
    stream = Stream.of(flow, slots, 1, 6, (4, 3))
    before = [tensor.clone() for tensor in (slots.tokens, slots.upsampled, slots.lookahead_past, slots.upsample_past)]
    step(encoder, slots, [stream.row(0)], batch=3, tokens=4)
    after = (slots.tokens, slots.upsampled, slots.lookahead_past, slots.upsample_past)
    for old, new in zip(before, after, strict=True):
        assert torch.equal(old[0], new[0])
        assert not torch.equal(old[1], new[1])


def test_the_longest_voice_that_is_taken_is_seen_to_its_end_and_a_longer_one_is_refused(
    flow: Flow, encoder: FusedEncoder
) -> None:
    slots = fresh_slots(flow, 1)
    stream = Stream.of(flow, slots, 0, LONGEST_PROMPT_TOKENS, (3,))
    mu = step(encoder, slots, [stream.row(0)], batch=1, tokens=3)
    torch.testing.assert_close(mu[0], stream.step_oracle(flow, 0), atol=2e-5, rtol=1e-4)

    device = torch.device(DEVICE)
    check_voice(OpenedVoice(stream.voice), torch.float32, device)
    longer = (LONGEST_PROMPT_TOKENS + 1,)
    with pytest.raises(AssertionError, match="a voice of 751 tokens"):
        check_voice(OpenedVoice(replace(stream.voice, tokens_done=longer, prompt_tokens=longer)), torch.float32, device)
