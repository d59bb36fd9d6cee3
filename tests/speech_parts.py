"""What tests of speech are made of: the tiny checkpoint's real parts, and a language model that can be held."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from sidecar.engine.client import Accepted, EngineRequest, TokenDelta
from sidecar.engine.scripted import ScriptedEngine
from sidecar.engine.text import TextTokenizer
from sidecar.token2wav import synthetic as token2wav_synthetic
from sidecar.token2wav.state import OpenedVoice, StreamState, VoiceFeatures
from sidecar.token2wav.token2wav import Token2Wav
from step_audio_vllm import synthetic

#: Seeds with which `FaultyToken2Wav` fails, from the second chunk on.
NAN_SEED, ERROR_SEED = 666_001, 666_002


def write_tiny_checkpoint(folder: Path) -> Path:
    synthetic.main([str(folder), "--size", "tiny"])
    token2wav_synthetic.main([str(folder), "--size", "tiny"])
    return folder


class FaultyToken2Wav:
    """The real one, except for streams with one of two seeds: those break in the middle."""

    LOOKAHEAD_TOKENS = Token2Wav.LOOKAHEAD_TOKENS

    def __init__(self, real: Token2Wav) -> None:
        self.real = real
        self.steps: list[list[int]] = []  # the seeds of each step, in order

    def open_voice(self, features: VoiceFeatures) -> OpenedVoice:
        return self.real.open_voice(features)

    def start(self, voice: OpenedVoice, *, seed: int) -> StreamState:
        return self.real.start(voice, seed=seed)

    def step(self, tokens: Tensor, states: Sequence[StreamState], *, last: bool) -> tuple[Tensor, list[StreamState]]:
        seeds = [state.seed for state in states]
        self.steps.append(seeds)
        later = states[0].frames_done > 0
        if later and ERROR_SEED in seeds:
            raise RuntimeError("the accelerator fell off")
        samples, after = self.real.step(tokens, states, last=last)
        broken = torch.tensor([later and seed == NAN_SEED for seed in seeds])
        return samples.masked_fill(broken[:, None], torch.nan), after


class GatedEngine(ScriptedEngine):
    """A scripted engine whose replies stop at `hold_at` tokens, and whose acceptance waits, for as long as told.

    Its attributes are set by a test's thread while the server's reads them.
    """

    def __init__(self, token_ids: Sequence[int] = ()) -> None:
        super().__init__(token_ids, sleep=self._gate)
        self.hold_at: int | None = None
        self.hold_acceptance = False
        self.waiting = 0  # requests that have come and are neither accepted nor gone

    def reset(self, token_ids: Sequence[int]) -> None:
        self.__init__(token_ids)  # type: ignore[misc]

    async def generate(self, request: EngineRequest) -> AsyncIterator[Accepted | TokenDelta]:
        self.waiting += 1
        try:
            while self.hold_acceptance:
                await asyncio.sleep(0.002)
        finally:
            self.waiting -= 1
        replies = super().generate(request)
        try:
            async for item in replies:
                yield item
        finally:
            await replies.aclose()  # type: ignore[attr-defined]

    async def _gate(self, _: float) -> None:
        await asyncio.sleep(0)
        while self.hold_at is not None and self.tokens_said >= self.hold_at:
            await asyncio.sleep(0.002)


def spoken_reply(text: TextTokenizer, words: str, speech_tokens: int, *, seed: int = 0) -> list[int]:
    """Ids as the model writes them: one of text, four of speech, until both have run out; then the end."""
    vocabulary, drawn = text.vocabulary, random.Random(seed)
    text_ids = text.encode(words)
    codes = [vocabulary.first_speech_id + drawn.randrange(6561) for _ in range(speech_tokens)]
    ids: list[int] = []
    for group in range(max(len(text_ids), -(-speech_tokens // 4))):
        ids.append(text_ids[group] if group < len(text_ids) else vocabulary.tts_pad)
        ids.extend(codes[4 * group : 4 * group + 4])
    return [*ids, vocabulary.tts_end, vocabulary.end_of_turn]
