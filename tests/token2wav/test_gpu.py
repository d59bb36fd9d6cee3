"""On a GPU: the CPU's numbers, and the same ones every time; captured, in batches, in 16 bits and in two lanes as well.

At full width, since small layers take other kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import pytest
import torch
from gpu_parts import (
    Speech,
    by_the_oracle,
    in_steps,
    mel_by_the_oracle,
    mels_in_a_batch,
    speech,
    vocoded,
    vocoded_by_the_oracle,
)
from tiny_token2wav import WEIGHTS, signal_to_noise_db, tiny_config
from torch import Tensor

from sidecar.token2wav import Token2Wav, VoiceFeatures
from sidecar.token2wav.config import FlowConfig, load_flow_config
from sidecar.token2wav.flow import Flow
from sidecar.token2wav.graphs import CapturedSteps
from sidecar.token2wav.synthetic import write_token2wav
from sidecar.token2wav.weights import load_flow

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = tmp_path_factory.mktemp("model")
    write_token2wav(model, "full")
    return model / "token2wav"


def spoken(token2wav: Token2Wav) -> Tensor:
    """Three chunks after a prompt of 2 s, (1, 960 * 55)."""
    drawn = torch.Generator().manual_seed(0)
    features = VoiceFeatures(
        prompt_tokens=torch.randint(0, 6561, (50,), generator=drawn),
        prompt_mel=torch.randn(100, 80, generator=drawn) - 5,
        speaker=torch.randn(192, generator=drawn),
    )
    tokens = torch.randint(0, 6561, (1, 55), generator=drawn)
    state, sounds = token2wav.start(token2wav.open_voice(features), seed=3), []
    for first, after, last in ((0, 13, False), (10, 33, False), (30, 55, True)):
        samples, (state,) = token2wav.step(tokens[:, first:after], [state], last=last)
        sounds.append(samples.cpu())
    return torch.cat(sounds, dim=1)


def test_a_gpu_speaks_as_a_cpu_does_and_repeats_itself(folder: Path) -> None:
    on_gpu = Token2Wav.from_folder(folder, device="cuda")
    sound = spoken(on_gpu)
    assert signal_to_noise_db(sound, spoken(Token2Wav.from_folder(folder))) > 50  # 15 dB with TF32
    for _ in range(3):
        assert torch.equal(spoken(on_gpu), sound)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_flow_in_16_bits_gives_finite_sound_that_repeats_itself(folder: Path, dtype: torch.dtype) -> None:
    token2wav = Token2Wav.from_folder(folder, device="cuda", dtype=dtype)
    sound = spoken(token2wav)
    assert sound.isfinite().all()
    assert torch.equal(spoken(token2wav), sound)


def mel_of(weights: Path, config: FlowConfig, device: str, dtype: torch.dtype) -> Tensor:
    """Two chunks after a prompt of 1 s, (1, M, 66) on the CPU; the noise is the same on every device."""
    flow = Flow(load_flow(weights, config, dtype=dtype), device=device, dtype=dtype)
    drawn = torch.Generator().manual_seed(0)
    features = VoiceFeatures(
        prompt_tokens=torch.randint(0, config.vocab_size, (25,), generator=drawn),
        prompt_mel=torch.randn(50, 80, generator=drawn) - 5,
        speaker=torch.randn(192, generator=drawn),
    )
    tokens = torch.randint(0, config.vocab_size, (1, 33), generator=drawn)
    prompt_noise, *noises = torch.randn(1, 80, 50 + 20 + 46, generator=drawn).split([50, 20, 46], dim=-1)
    _, state = flow.open_voice(features, prompt_noise)
    mels = []
    for (first, after, last), noise in zip(((0, 13, False), (10, 33, True)), noises, strict=True):
        mel, (state,) = flow.step(tokens[:, first:after], [state], noise, last=last)
        mels.append(mel.cpu())
    return torch.cat(mels, dim=-1)


# on a CPU: 0.0005 and 0.0039 at full size, 0.0008 and 0.0065 at tiny size
@pytest.mark.parametrize(("dtype", "most"), [(torch.float16, 0.0015), (torch.bfloat16, 0.012)])
@pytest.mark.parametrize("size", ["tiny", "full"])
def test_a_mel_in_16_bits_is_close_to_the_cpus_in_float32(
    folder: Path, size: str, dtype: torch.dtype, most: float
) -> None:
    weights, config = (
        (WEIGHTS, tiny_config()) if size == "tiny" else (folder / "flow.pt", load_flow_config(folder / "flow.yaml"))
    )
    exact = mel_of(weights, config, "cpu", torch.float32)
    mel = mel_of(weights, config, "cuda", dtype)
    assert mel.dtype == torch.float32
    assert (mel - exact).norm() / (exact - exact.mean()).norm() < most


#: Each word is a step. "a" outgrows the estimator's window, "b" leaves and "c" joins on the way, "d" takes b's slot.
PLAN = ("ab", "abc", "acd", "ac", "a", "a")


class Road:
    """A model in one precision: opened voices, streams to speak, and their steps."""

    def __init__(self, folder: Path, dtype: torch.dtype) -> None:
        self.token2wav = Token2Wav.from_folder(folder, device="cuda", dtype=dtype)
        self.voices = [self.token2wav.open_voice(random_voice(tokens)) for tokens in (25, 50, 80)]
        self.speeches = {
            "a": self.said(0, (8, 12, 12, 12, 12, 5), seed=1),
            "b": self.said(1, (8, 7), seed=2),
            "c": self.said(2, (8, 12, 14), seed=3),
            "d": self.said(1, (5,), seed=4),
        }
        #: Three streams of two chunks each.
        self.short = [self.said(0, (8, 12), seed=5), self.said(1, (6, 12), seed=6), self.said(2, (8, 9), seed=7)]
        self.steps = self.new_steps()

    def said(self, voice: int, chunk_tokens: tuple[int, ...], *, seed: int) -> Speech:
        return speech(self.token2wav, self.voices[voice], chunk_tokens, seed=seed)

    def new_steps(self, *, capture: bool = True) -> CapturedSteps:
        return CapturedSteps(self.token2wav, slots=3, chunk_tokens=(8, 12), capture=capture)


def random_voice(prompt_tokens: int) -> VoiceFeatures:
    drawn = torch.Generator().manual_seed(prompt_tokens)
    return VoiceFeatures(
        prompt_tokens=torch.randint(0, 6561, (prompt_tokens,), generator=drawn),
        prompt_mel=torch.randn(2 * prompt_tokens, 80, generator=drawn) - 5,
        speaker=torch.randn(192, generator=drawn),
    )


def relative_error(mel: Tensor, exact: Tensor) -> float:
    return ((mel - exact).norm() / (exact - exact.mean()).norm()).item()


@pytest.fixture(scope="module")
def road(folder: Path) -> Callable[[torch.dtype], Road]:
    """Each precision is loaded and captured when it is first asked for."""
    return cache(lambda dtype: Road(folder, dtype))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_captured_steps_make_the_samples_of_uncaptured_ones(
    road: Callable[[torch.dtype], Road], dtype: torch.dtype
) -> None:
    here = road(dtype)
    captured = in_steps(here.steps, here.speeches, PLAN)
    launched = in_steps(here.new_steps(capture=False), here.speeches, PLAN)
    for name, sound in captured.items():
        assert sound.isfinite().all()
        assert torch.equal(sound, launched[name])


def test_the_same_streams_make_the_same_samples_again(road: Callable[[torch.dtype], Road]) -> None:
    here = road(torch.float16)
    first, second = (in_steps(here.steps, here.speeches, PLAN) for _ in range(2))
    for name, sound in first.items():
        assert torch.equal(sound, second[name])


@pytest.mark.parametrize("name", ["a", "b", "c", "d"])
def test_a_stream_in_a_batch_sounds_as_it_does_alone_and_by_the_oracle(
    road: Callable[[torch.dtype], Road], name: str
) -> None:
    """In float32. In 16 bits a matrix product rounds otherwise in another batch; there the mels are compared."""
    here = road(torch.float32)
    together = in_steps(here.steps, here.speeches, PLAN)[name]
    alone = in_steps(here.steps, {name: here.speeches[name]}, name * len(here.speeches[name].chunk_tokens))[name]
    exact = by_the_oracle(here.token2wav, here.speeches[name])
    assert together.shape == exact.shape
    assert signal_to_noise_db(together, alone) > 50
    assert signal_to_noise_db(together, exact) > 50


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-5), (torch.float16, 0.0015), (torch.bfloat16, 0.01)])
def test_mels_and_sound_of_a_batch_are_close_to_the_oracles_in_float32(
    road: Callable[[torch.dtype], Road], folder: Path, dtype: torch.dtype, most: float
) -> None:
    exact_road, here = road(torch.float32), road(dtype)
    exact = [mel_by_the_oracle(exact_road.token2wav, said) for said in exact_road.short]
    mels = mels_in_a_batch(here.steps.step, here.short)
    alone = [mels_in_a_batch(here.steps.step, [said])[0] for said in here.short]
    vocoder = exact_road.token2wav.vocoder
    sounds = vocoded(vocoder, mels, exact, dtype)
    for mel, right, by_itself, sound in zip(mels, exact, alone, sounds, strict=True):
        assert relative_error(mel, right) < most
        assert relative_error(mel, by_itself) < most
        assert signal_to_noise_db(sound, vocoded_by_the_oracle(vocoder, right)) > 35


def test_two_lanes_and_a_voice_being_opened_harm_nobody(road: Callable[[torch.dtype], Road]) -> None:
    here = road(torch.float16)
    firsts = [here.said(voice, (8, 5), seed=10 + voice) for voice in range(3)]
    quiet = in_steps(here.steps, {"a": here.speeches["a"]}, "aaaaaa")["a"]
    quiet_firsts = [in_steps(here.steps, {"f": said}, "ff", lane=0)["f"] for said in firsts]
    with ThreadPoolExecutor(max_workers=1) as thread:
        playing = here.steps.open(here.speeches["a"].voice, seed=here.speeches["a"].seed)
        assert playing is not None
        sounds = []
        for index, chunk in enumerate(here.speeches["a"].chunks()):
            said = firsts[index % 3]
            opening = thread.submit(here.token2wav.open_voice, random_voice(60 + index))
            beside = here.steps.open(said.voice, seed=said.seed)
            assert beside is not None
            steady = here.steps.submit([(playing, chunk)], lane=0)
            first = here.steps.submit([(beside, next(said.chunks()))], lane=1)
            (begun,), (samples,) = first.wait(), steady.wait()
            here.steps.close(beside)
            sounds.append(torch.from_numpy(samples))
            opening.result()
            assert len(begun) > 0
            assert torch.equal(torch.from_numpy(begun), quiet_firsts[index % 3][: len(begun)])
        here.steps.close(playing)
    assert torch.equal(torch.cat(sounds), quiet)
