"""Mel to sound in the slots of a step, lines of different places and lengths together, against each stream alone.

On a GPU with the network that is used there; without one, with the oracle's, and everything around it interpreted.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import cache

import pytest
import torch
from golden_folders import DATA
from seam_measures import moving_mel
from tiny_token2wav import signal_to_noise_db, tiny_config
from torch import Tensor

pytest.importorskip("triton", reason="needs Triton, which is there on Linux alone")

from sidecar.token2wav.gpu.fourier import analyse, synthesise
from sidecar.token2wav.gpu.noise import mel_noise
from sidecar.token2wav.gpu.rows import Row, Rows
from sidecar.token2wav.gpu.seams import FusedVocoder, samples_given
from sidecar.token2wav.gpu.slots import Slots, allocate
from sidecar.token2wav.gpu.source import harmonic_source
from sidecar.token2wav.noise import SeededNoise
from sidecar.token2wav.phase import continued_phase, summed_turns
from sidecar.token2wav.seams import CONTINUOUS
from sidecar.token2wav.seams.continuous import ContinuousState
from sidecar.token2wav.vocoder import SAMPLE_LIMIT, Vocoder
from sidecar.token2wav.weights import load_vocoder

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NOISE = SeededNoise()
SLOTS = 5
MOST_TOKENS = 9

pytestmark = pytest.mark.usefixtures("without_gradients")


@pytest.fixture
def without_gradients() -> object:
    with torch.inference_mode():
        yield


@cache
def vocoder() -> Vocoder:
    return load_vocoder(DATA / "hift" / "hift.safetensors").to(DEVICE)


class NetworkOfTheOracle:
    """In place of `FusedDecoder`, line by line: the interpreter takes half a minute for each step of that one."""

    def __init__(self, whole: Vocoder) -> None:
        self._vocoder = copy.deepcopy(whole)
        self._vocoder.stft.analyse = lambda spectrum: spectrum  # type: ignore[method-assign]
        self._made: list[Tensor] = []
        self._vocoder.conv_post.register_forward_hook(lambda module, given, output: self._made.append(output))

    def pitch(self, mel: Tensor, lengths: Tensor) -> Tensor:
        pitch = torch.full(mel.shape[:2], torch.nan)
        for line, length in enumerate(lengths.tolist()):
            if length:
                pitch[line, :length] = self._vocoder.f0(mel[line, :length].T[None])
        return pitch

    def __call__(self, mel: Tensor, spectra: Tensor, lengths: Tensor) -> Tensor:
        out = torch.full(spectra.shape, torch.nan)
        for line, length in enumerate(lengths.tolist()):
            if length:
                columns = slice(120 * length + 1)
                self._vocoder.decode(mel[line, :length].T[None], spectra[line, columns].T[None])
                out[line, columns] = self._made.pop()[0].T
        return out


@cache
def fused() -> FusedVocoder:
    made = FusedVocoder(vocoder(), torch.float32)
    if DEVICE == "cpu":
        made.decoder = NetworkOfTheOracle(vocoder())  # type: ignore[assignment]
    return made


def unused_slots() -> Slots:
    """As the memory of streams that failed may be found: the vocoder's part is NaN wherever a start leaves it so."""
    slots = allocate(tiny_config(), SLOTS, most_tokens=MOST_TOKENS, dtype=torch.float32, device=DEVICE)
    for left in (slots.mel, slots.f0, slots.speech):
        left.fill_(torch.nan)
    slots.at_start.fill_(1)
    return slots


@dataclass
class Stream:
    """One stream by the oracle, and what a line must say of it."""

    slot: int
    seed: int
    chunks: Sequence[int]  # new tokens; the last ends it
    state: ContinuousState = field(default_factory=lambda: CONTINUOUS.initial_state(vocoder(), 1))
    steps: int = 0

    def row(self) -> Row:
        new, last = self.chunks[self.steps], self.steps == len(self.chunks) - 1
        return a_row(
            self.slot, new, last=last, done=self.state.frames_done[0] // 2, held=self.state.held_frames, seed=self.seed
        )

    def new_mel(self) -> Tensor:
        """(M, T), of the next chunk."""
        first = self.state.frames_done[0]
        whole = moving_mel(2 * sum(self.chunks)).roll(self.slot, dims=1) + 0.1 * self.slot
        return whole[0, :, first : first + 2 * self.chunks[self.steps]].to(DEVICE)

    def step(self) -> Tensor:
        """(S,)"""
        mel, row = self.new_mel()[None], self.row()
        noise = NOISE.source(self.seed, 2 * row.tokens_done - row.held_frames, row.held_frames + mel.shape[-1])
        samples, self.state = CONTINUOUS.step(vocoder(), mel, self.state, noise[None].to(DEVICE), last=row.last)
        self.steps += 1
        return samples[0]


def a_row(slot: int, new: int, *, last: bool = False, done: int = 0, held: int = 0, seed: int = 0) -> Row:
    return Row(
        slot=slot, tokens=(0,) * (new if last else new + 3), last=last, prompt_tokens=7, tokens_done=done,
        held_frames=held, seed=seed, voice_frames=0, voice_tokens=0, voice_upsampled=0,
    )  # fmt: skip


def rows_of(rows: Sequence[Row], batch: int, tokens: int = MOST_TOKENS) -> Rows:
    on_host = Rows.empty(batch, tokens, "cpu")
    on_host.write(rows)
    return Rows(on_host.control.to(DEVICE))


def mel_of(streams: Sequence[Stream], batch: int) -> Tensor:
    """(B, T, M), with NaN where a line has no frame."""
    mel = torch.full((batch, 2 * MOST_TOKENS, 80), torch.nan, device=DEVICE)
    for line, stream in enumerate(streams):
        new = stream.new_mel().T
        mel[line, : len(new)] = new
    return mel


def step_together(streams: Sequence[Stream], slots: Slots, batch: int) -> list[Tensor]:
    rows = [stream.row() for stream in streams]
    out = fused()(mel_of(streams, batch), rows_of(rows, batch), slots)
    assert out.shape == (batch, 480 * (2 * MOST_TOKENS + 8))
    return [
        line[: samples_given(row.held_frames, 2 * row.new_tokens, last=row.last)]
        for line, row in zip(out, rows, strict=False)
    ]


def assert_slot_holds(slots: Slots, stream: Stream) -> None:
    state, slot = stream.state, stream.slot
    torch.testing.assert_close(slots.mel[slot, : state.held_frames], state.mel[0].T, atol=1e-5, rtol=0)
    torch.testing.assert_close(slots.f0[slot, : state.f0.shape[1]], state.f0[0], atol=1e-3, rtol=0)
    torch.testing.assert_close(slots.turns[slot], state.turns[0], atol=1e-4, rtol=0)
    assert bool(slots.at_start[slot]) == bool(state.at_start[0])
    withheld = state.speech.shape[1]
    assert signal_to_noise_db(slots.speech[slot, :withheld], state.speech[0]) > 60


def test_streams_anywhere_in_their_speech_share_a_step_and_sound_as_alone() -> None:
    """First chunks of 1, 3, 4 and 8 tokens; joining and leaving, slots and lines in any order, beside empty lines."""
    streams = {
        "a": Stream(3, seed=1, chunks=(1, 3, 1, 9, 2)),
        "b": Stream(0, seed=2**40, chunks=(3, 2, 9)),
        "c": Stream(4, seed=3, chunks=(4, 5, 1)),
        "d": Stream(1, seed=2**63 + 5, chunks=(8, 6)),
        "e": Stream(2, seed=0, chunks=(1,)),
    }
    slots = unused_slots()
    for together in ("dab", "eca", "cba", "adbc", "a"):
        sharing = [streams[name] for name in together]
        sounds = step_together(sharing, slots, batch=4)
        for stream, ours in zip(sharing, sounds, strict=True):
            alone = stream.step()
            assert ours.shape == alone.shape
            if len(alone):
                assert signal_to_noise_db(ours, alone) > 60
            assert_slot_holds(slots, stream)
    assert all(stream.steps == len(stream.chunks) for stream in streams.values())


def test_nothing_is_written_for_empty_lines_and_other_streams() -> None:
    slots = unused_slots()
    for tensor in (getattr(slots, part.name) for part in fields(slots)):
        tensor.copy_(torch.arange(tensor.numel(), device=DEVICE).view(tensor.shape) % 97)
    before = {part.name: getattr(slots, part.name).clone() for part in fields(slots)}
    step_together([Stream(2, seed=1, chunks=(2, 2))], slots, batch=3)
    for name, was in before.items():
        others = [0, 1, 3, 4]  # empty lines name slot 0
        assert torch.equal(getattr(slots, name)[others], was[others]), name
    assert not torch.equal(slots.mel[2], before["mel"][2])


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, 3e38])
def test_a_line_that_is_not_finite_is_nan_from_end_to_end_and_alone(wrong: float) -> None:
    """3e38 is a finite mel, of which the network makes sound that is not."""
    streams = [Stream(slot, seed=slot, chunks=(5, 1)) for slot in range(3)]
    mel = mel_of(streams, 3)
    mel[1, 4] = wrong
    out = fused()(mel, rows_of([stream.row() for stream in streams], 3), unused_slots())
    assert out[1].isnan().all()
    for line in (0, 2):
        sound = streams[line].step()
        assert signal_to_noise_db(out[line, : len(sound)], sound) > 60
        assert not out[line, len(sound) :].any()


@pytest.mark.parametrize("last", [False, True])
def test_a_stream_is_given_as_many_samples_as_the_oracle_gives(last: bool) -> None:
    state = CONTINUOUS.initial_state(vocoder(), 1)
    for frames in (2, 2, 6, 2, 4, 2):
        held = state.held_frames
        mel, noise = torch.zeros(1, 80, frames, device=DEVICE), torch.zeros(1, 480 * (held + frames), 9, device=DEVICE)
        given, _ = CONTINUOUS.step(vocoder(), mel, state, noise, last=last)
        assert given.shape[1] == samples_given(held, frames, last=last)
        _, state = CONTINUOUS.step(vocoder(), mel, state, noise, last=False)


def test_mel_noise_is_the_cpus() -> None:
    rows = [
        a_row(0, 9, seed=2**63 + 5),
        a_row(1, 2, seed=7, done=2**33),
        a_row(2, 1, last=True, seed=-1, done=12),
    ]
    drawn = mel_noise(rows_of(rows, 4), 80).cpu()
    for line, row in zip(drawn, rows, strict=False):
        frames = 2 * row.new_tokens
        expected = NOISE.speech_mel(row.seed, 0, 2 * row.tokens_done, frames, 80).T
        torch.testing.assert_close(line[:frames], expected, atol=1e-5, rtol=1e-5)
        assert not line[frames:].any()
    assert not drawn[3].any()


def test_the_harmonic_source_is_the_oracles() -> None:
    """Voiced and not, at a stream's start and 30 hours on, of different lengths."""
    random = torch.Generator().manual_seed(4)
    f0 = 400 * torch.rand(4, 6, generator=random)
    f0[:, 2] = 4.0
    before = torch.rand(4, generator=random, dtype=torch.float64)
    slots = unused_slots()
    slots.at_start[1:] = 0
    rows = [a_row(0, 3), a_row(1, 2, done=10, held=2, seed=5), a_row(2, 1, done=27 * 10**5, held=3, seed=2**64 - 1)]
    lengths = [6, 6, 5, 0]
    turns = summed_turns(f0, before)
    found = harmonic_source(
        f0.to(DEVICE), turns.to(DEVICE), torch.tensor(lengths, dtype=torch.int32, device=DEVICE), vocoder().m_source,
        rows_of(rows, 4), slots,
    ).cpu()  # fmt: skip
    for line, row in enumerate(rows):
        own = f0[line : line + 1, : lengths[line]]
        phase = continued_phase(own, before[line : line + 1], torch.tensor([line == 0]))
        noise = NOISE.source(row.seed, 2 * row.tokens_done - row.held_frames, lengths[line])[None]
        expected = vocoder().source(own.to(DEVICE), phase.to(DEVICE), noise.to(DEVICE))[0, 0].cpu()
        torch.testing.assert_close(found[line, : len(expected)], expected, atol=1e-5, rtol=0)


def test_the_fourier_transform_is_the_oracles_there_and_back_at_each_lines_own_ends() -> None:
    lengths = [3, 1, 0, 2]
    stft, on_device = vocoder().stft, torch.tensor(lengths, dtype=torch.int32, device=DEVICE)
    signal = torch.randn(4, 3 * 480, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    spectra = torch.randn(4, 3 * 120 + 1, 18, generator=torch.Generator().manual_seed(2)).to(DEVICE)
    spectra[0, 7, 3] = 200.0  # far above the largest magnitude
    spectra[1, 0] = 90.0
    for line, length in enumerate(lengths):
        signal[line, 480 * length :] = torch.nan
        spectra[line, 120 * length + 1 if length else 0 :] = torch.nan
    broken = torch.zeros(4, dtype=torch.int32, device=DEVICE)
    analysed = analyse(signal, on_device, stft, torch.float32)
    synthesised = synthesise(spectra, on_device, stft, broken)
    assert broken.tolist() == [0, 0, 0, 0]
    for line, length in enumerate(lengths):
        if length == 0:
            continue
        expected = stft.analyse(signal[line, None, None, : 480 * length])[0].T
        torch.testing.assert_close(analysed[line, : 120 * length + 1], expected, atol=1e-5, rtol=1e-5)
        log_magnitude, angle = spectra[line, : 120 * length + 1].T[None].chunk(2, dim=1)
        sound = stft.synthesise(log_magnitude.exp().clamp(max=100), torch.sin(angle))[0]
        expected = sound.clamp(-SAMPLE_LIMIT, SAMPLE_LIMIT)
        torch.testing.assert_close(synthesised[line, : 480 * length], expected, atol=1e-5, rtol=1e-5)
    spectra[3, 50, 4] = torch.nan
    synthesise(spectra, on_device, stft, broken)
    assert broken.tolist() == [0, 0, 0, 1]
