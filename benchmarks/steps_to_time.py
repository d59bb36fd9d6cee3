"""The same step in three ways, brought to where a case wants it: captured, its kernels one by one, and eager."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from sidecar.streaming.chunking import Chunk
from sidecar.streaming.steps import ANY_LANE, FIRST_CHUNK_LANE
from sidecar.timebase import tokens_to_frames
from sidecar.token2wav import Token2Wav, VoiceFeatures
from sidecar.token2wav.gpu.playing import Playing
from sidecar.token2wav.gpu.slots import HELD_FRAMES
from sidecar.token2wav.graphs import CapturedSteps
from sidecar.token2wav.history import PAST_TOKENS
from sidecar.token2wav.state import OpenedVoice
from sidecar.token2wav.upsample_encoder import LOOKAHEAD_TOKENS


@dataclass(frozen=True)
class Case:
    """A step of so many streams, of so many new tokens each."""

    batch: int
    tokens: int
    first: bool  # of new streams; else of streams whose windows are full


Prepare = Callable[[Case], Callable[[], None]]


class Captured:
    """The product's steps, with a slot for each stream of the largest batch."""

    def __init__(
        self,
        token2wav: Token2Wav,
        voice: OpenedVoice,
        chunk_tokens: Sequence[int],
        most_rows: int,
        *,
        capture: bool = True,
    ) -> None:
        self.token2wav = token2wav
        self.opened_voice = voice
        self.steps = CapturedSteps(
            token2wav, slots=most_rows, chunk_tokens=chunk_tokens, most_rows=most_rows, capture=capture
        )

    @staticmethod
    def voice(token2wav: Token2Wav, prompt_tokens: int) -> OpenedVoice:
        """Of random features."""
        drawn = torch.Generator().manual_seed(0)
        config = token2wav.flow.config
        return token2wav.open_voice(
            VoiceFeatures(
                prompt_tokens=torch.randint(0, config.vocab_size, (prompt_tokens,), generator=drawn),
                prompt_mel=torch.randn(tokens_to_frames(prompt_tokens), config.output_size, generator=drawn) - 5,
                speaker=torch.randn(config.spk_embed_dim, generator=drawn),
            )
        )

    def prepare(self, case: Case) -> Callable[[], None]:
        chunk = a_chunk(self.token2wav, case.tokens)
        if case.first:
            return lambda: self._first_chunk(case.batch, chunk)
        return lambda: self._next_chunk(self.full(case.batch), chunk)

    def full(self, batch: int) -> list[Playing]:
        """Streams as they are after 30 s. Their windows hold nothing, which takes as long to look at as speech."""
        return [
            Playing(slot, self.opened_voice, seed=slot, tokens_done=PAST_TOKENS, held_frames=HELD_FRAMES)
            for slot in range(batch)
        ]

    def _first_chunk(self, batch: int, chunk: Chunk) -> None:
        opened = [self.steps.open(self.opened_voice, seed=seed) for seed in range(batch)]
        new = [stream for stream in opened if stream is not None]
        assert len(new) == batch, f"{batch} streams in {len(new)} slots"
        self.steps.submit([(stream, chunk) for stream in new], lane=FIRST_CHUNK_LANE).wait()
        for stream in new:
            self.steps.close(stream)

    def _next_chunk(self, playing: Sequence[Playing], chunk: Chunk) -> None:
        self.steps.submit([(stream, chunk) for stream in playing], lane=ANY_LANE).wait()


class Eager:
    """`Token2Wav.step`."""

    def __init__(self, token2wav: Token2Wav, voice: OpenedVoice) -> None:
        self._token2wav = token2wav
        self._voice = voice

    def prepare(self, case: Case) -> Callable[[], None]:
        tokens = torch.tensor([a_chunk(self._token2wav, case.tokens).tokens] * case.batch)
        states = [self._token2wav.start(self._voice, seed=seed) for seed in range(case.batch)]
        # enough for the estimator's window; the encoder's would take 30 steps, and what is missing speeds this way up
        for _ in range(0 if case.first else 3):
            _, states = self._token2wav.step(tokens, states, last=False)

        def run() -> None:
            samples, _ = self._token2wav.step(tokens, states, last=False)
            samples.cpu()

        return run


def a_chunk(token2wav: Token2Wav, new_tokens: int) -> Chunk:
    drawn = torch.Generator().manual_seed(new_tokens)
    tokens = torch.randint(0, token2wav.speech_token_count, (new_tokens + LOOKAHEAD_TOKENS,), generator=drawn)
    return Chunk(tuple(tokens.tolist()), new_tokens, last=False)
