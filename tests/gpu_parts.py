"""Streams for tests of the GPU's road. Whoever needs Triton imports from here first, and is skipped without it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from sidecar.streaming.chunking import Chunk
from sidecar.timebase import frames_to_samples, tokens_to_frames
from sidecar.token2wav import Token2Wav
from sidecar.token2wav.noise import SeededNoise
from sidecar.token2wav.phase import continued_phase
from sidecar.token2wav.state import OpenedVoice
from sidecar.token2wav.upsample_encoder import LOOKAHEAD_TOKENS
from sidecar.token2wav.vocoder import Vocoder

pytest.importorskip("triton", reason="needs Triton, which is there on Linux alone")

from sidecar.token2wav.gpu.decoder import FusedDecoder
from sidecar.token2wav.gpu.fourier import analyse, synthesise
from sidecar.token2wav.gpu.noise import mel_noise
from sidecar.token2wav.gpu.playing import Playing
from sidecar.token2wav.gpu.rows import Row, Rows
from sidecar.token2wav.gpu.step import GpuToken2Wav
from sidecar.token2wav.graphs import CapturedSteps

MEL_BINS = 80


@dataclass(frozen=True)
class Speech:
    """What one stream says, cut into chunks of so many new tokens; a last one after others has had 3 as look-ahead."""

    voice: OpenedVoice
    tokens: Sequence[int]
    chunk_tokens: Sequence[int]
    seed: int

    def chunks(self) -> Iterator[Chunk]:
        done = 0
        for index, size in enumerate(self.chunk_tokens):
            last = index == len(self.chunk_tokens) - 1
            after = done + size + (0 if last else LOOKAHEAD_TOKENS)
            assert after <= len(self.tokens), f"{len(self.tokens)} tokens are too few for chunks of {self.chunk_tokens}"
            yield Chunk(tuple(self.tokens[done:after]), size, last=last)
            done += size


def speech(token2wav: Token2Wav, voice: OpenedVoice, chunk_tokens: Sequence[int], *, seed: int) -> Speech:
    """Tokens drawn from the seed, too."""
    drawn = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, token2wav.speech_token_count, (sum(chunk_tokens),), generator=drawn).tolist()
    return Speech(voice, tokens, chunk_tokens, seed)


def by_the_oracle(token2wav: Token2Wav, said: Speech) -> Tensor:
    """(S,), the stream alone, stepped by `Token2Wav`."""
    state, sounds = token2wav.start(said.voice, seed=said.seed), []
    for chunk in said.chunks():
        samples, (state,) = token2wav.step(torch.tensor([chunk.tokens]), [state], last=chunk.last)
        sounds.append(samples[0].cpu())
    return torch.cat(sounds)


def in_steps(
    steps: CapturedSteps, speeches: Mapping[str, Speech], plan: Sequence[str], *, lane: int = 0
) -> dict[str, Tensor]:
    """The sound of each stream, (S,). Each word of the plan is a step: a letter for each stream whose next chunk is in
    it. A stream is opened by its first step and closed after its last."""
    waiting = {name: list(said.chunks()) for name, said in speeches.items()}
    playing: dict[str, Playing] = {}
    sounds: dict[str, list[Tensor]] = {name: [] for name in speeches}
    for together in plan:
        for name in together:
            if name not in playing:
                said = speeches[name]
                opened = steps.open(said.voice, seed=said.seed)
                assert opened is not None, "all slots are taken"
                playing[name] = opened
        made = steps.submit([(playing[name], waiting[name].pop(0)) for name in together], lane=lane).wait()
        for name, samples in zip(together, made, strict=True):
            sounds[name].append(torch.from_numpy(samples))
            if not waiting[name]:
                steps.close(playing.pop(name))
    assert not any(waiting.values()), f"chunks left over: {waiting}"
    return {name: torch.cat(pieces) for name, pieces in sounds.items()}


@torch.inference_mode()
def mels_in_a_batch(step: GpuToken2Wav, speeches: Sequence[Speech]) -> list[Tensor]:
    """(T, M) of each stream, on the GPU's road without the vocoder; all must have equally many chunks."""
    playing = [Playing(slot, said.voice, said.seed) for slot, said in enumerate(speeches)]
    mels: list[list[Tensor]] = [[] for _ in speeches]
    for stream in playing:
        step.begin(stream.slot, stream.voice)
    for chunks in zip(*(said.chunks() for said in speeches), strict=True):
        pairs = zip(playing, chunks, strict=True)
        lines = [stream.row(chunk, vocab_size=step.vocab_size) for stream, chunk in pairs]
        rows = on_device(lines, step.device)
        mel = step.solver(step.encoder(rows, step.slots), mel_noise(rows, MEL_BINS), rows, step.slots)
        for line, (stream, made) in enumerate(zip(playing, mels, strict=True)):
            made.append(mel[line, : tokens_to_frames(lines[line].new_tokens)])
            stream.advance(lines[line].new_tokens)
    return [torch.cat(made) for made in mels]


def on_device(lines: Sequence[Row], device: torch.device) -> Rows:
    host = Rows.empty(len(lines), max(line.new_tokens for line in lines), "cpu")
    host.write(lines)
    return Rows(host.control.to(device))


@torch.inference_mode()
def mel_by_the_oracle(token2wav: Token2Wav, said: Speech) -> Tensor:
    """(T, M), the stream alone."""
    state, made, done = said.voice.flow, [], 0
    for chunk in said.chunks():
        frames = tokens_to_frames(chunk.new_tokens)
        noise = token2wav.noise.speech_mel(said.seed, state.prompt_frames[0], done, frames, MEL_BINS)[None]
        mel, (state,) = token2wav.flow.step(torch.tensor([chunk.tokens]), [state], noise, last=chunk.last)
        made.append(mel[0].T)
        done += frames
    return torch.cat(made)


@torch.inference_mode()
def vocoded(vocoder: Vocoder, mels: Sequence[Tensor], exact: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Mels (T, M) of any lengths -> samples (480 T,) each, on the GPU's road in one batch; the source of all sounds has
    the pitch of the exact mels."""
    lengths = torch.tensor([len(mel) for mel in mels], dtype=torch.int32, device=mels[0].device)
    sources = [source_of(vocoder, mel)[0, 0] for mel in exact]
    source = torch.nn.utils.rnn.pad_sequence(sources, batch_first=True)  # (B, 480 F)
    spectra = analyse(source, lengths, vocoder.stft, dtype)
    mel = torch.nn.utils.rnn.pad_sequence(list(mels), batch_first=True)  # (B, F, M)
    broken = torch.zeros_like(lengths)
    samples = synthesise(FusedDecoder(vocoder, dtype)(mel, spectra, lengths), lengths, vocoder.stft, broken)
    assert not broken.any(), "samples that are no numbers"
    return [line[: frames_to_samples(len(mel))] for line, mel in zip(samples, mels, strict=True)]


@torch.inference_mode()
def vocoded_by_the_oracle(vocoder: Vocoder, mel: Tensor) -> Tensor:
    """(T, M) -> (480 T,)."""
    return vocoder.decode(mel.T[None], source_of(vocoder, mel))[0]


def source_of(vocoder: Vocoder, mel: Tensor) -> Tensor:
    """(T, M) -> (1, 1, 480 T), with the same noise for every mel."""
    f0 = vocoder.f0(mel.T[None])
    before = torch.zeros(1, dtype=torch.float64, device=mel.device)
    phase = continued_phase(f0, before, at_start=torch.ones_like(before, dtype=torch.bool))
    return vocoder.source(f0, phase, SeededNoise().source(0, 0, len(mel))[None].to(mel.device))
