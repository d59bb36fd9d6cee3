"""On a GPU: the CPU's numbers, and the same ones every time; captured, in batches, in 16 bits and in two lanes as well.

At full width, since small layers take other kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, cached_property
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


@pytest.fixture(scope="module")
def loaded(folder: Path) -> Callable[[str, torch.dtype], Token2Wav]:
    """By device and precision; each is read when it is first asked for."""
    return cache(lambda device, dtype: Token2Wav.from_folder(folder, device=device, dtype=dtype))


def spoken(token2wav: Token2Wav) -> Tensor:
    """Three chunks after a prompt of 2 s, (960 * 36,)."""
    said = speech(token2wav, token2wav.open_voice(random_voice(50)), (10, 15, 11), seed=3)
    return by_the_oracle(token2wav, said)


def test_a_gpu_speaks_as_a_cpu_does_and_repeats_itself(loaded: Callable[[str, torch.dtype], Token2Wav]) -> None:
    on_gpu = loaded("cuda", torch.float32)
    sound = spoken(on_gpu)
    assert signal_to_noise_db(sound, spoken(loaded("cpu", torch.float32))) > 50  # 15 dB with TF32
    for _ in range(3):
        assert torch.equal(spoken(on_gpu), sound)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_flow_in_16_bits_gives_finite_sound_that_repeats_itself(
    loaded: Callable[[str, torch.dtype], Token2Wav], dtype: torch.dtype
) -> None:
    sound = spoken(loaded("cuda", dtype))
    assert sound.isfinite().all()
    assert torch.equal(spoken(loaded("cuda", dtype)), sound)


def mel_of(flow: Flow) -> Tensor:
    """Two chunks after a prompt of 1 s, (1, M, 66) on the CPU; the noise is the same on every device."""
    drawn = torch.Generator().manual_seed(0)
    vocab_size = flow.config.vocab_size
    features = random_voice(25, vocab_size=vocab_size)
    tokens = torch.randint(0, vocab_size, (1, 33), generator=drawn)
    prompt_noise, *noises = torch.randn(1, 80, 50 + 20 + 46, generator=drawn).split([50, 20, 46], dim=-1)
    _, state = flow.open_voice(features, prompt_noise)
    mels = []
    for (first, after, last), noise in zip(((0, 13, False), (10, 33, True)), noises, strict=True):
        mel, (state,) = flow.step(tokens[:, first:after], [state], noise, last=last)
        mels.append(mel.cpu())
    return torch.cat(mels, dim=-1)


@pytest.fixture(scope="module")
def flow_of(loaded: Callable[[str, torch.dtype], Token2Wav]) -> Callable[[str, str, torch.dtype], Flow]:
    """By size, device and precision."""

    def flow(size: str, device: str, dtype: torch.dtype) -> Flow:
        if size == "full":
            return loaded(device, dtype).flow
        return Flow(load_flow(WEIGHTS, tiny_config(), dtype=dtype), device=device, dtype=dtype)

    return flow


# on a CPU: 0.0005 and 0.0039 at full size, 0.0008 and 0.0065 at tiny size
@pytest.mark.parametrize("size", ["tiny", "full"])
def test_a_mel_in_16_bits_is_close_to_the_cpus_in_float32(
    flow_of: Callable[[str, str, torch.dtype], Flow], size: str
) -> None:
    exact = mel_of(flow_of(size, "cpu", torch.float32))
    for dtype, most in ((torch.float16, 0.0015), (torch.bfloat16, 0.012)):
        mel = mel_of(flow_of(size, "cuda", dtype))
        assert mel.dtype == torch.float32
        assert relative_error(mel, exact) < most, dtype


#: Each word is a step. "a" outgrows the estimator's window, "b" leaves and "c" joins on the way, "d" takes b's slot.
PLAN = ("ab", "abc", "acd", "ac", "a", "a")


class Road:
    """A model in one precision: opened voices, streams to speak, and their steps."""

    def __init__(self, token2wav: Token2Wav) -> None:
        self.token2wav = token2wav
        self.voices = [self.token2wav.open_voice(random_voice(tokens)) for tokens in (25, 50, 80)]
        self.speeches = {
            "a": self.said(0, (8, 12, 12, 12, 12, 5), seed=1),
            "b": self.said(1, (6, 7), seed=2),
            "c": self.said(2, (8, 10, 14), seed=3),
            "d": self.said(1, (5,), seed=4),
        }
        #: Three streams of two chunks each.
        self.short = [self.said(0, (8, 12), seed=5), self.said(1, (6, 10), seed=6), self.said(2, (7, 9), seed=7)]

    @cached_property
    def steps(self) -> CapturedSteps:
        """Captured when they are first asked for."""
        return self.new_steps()

    @cached_property
    def launched(self) -> CapturedSteps:
        """The same kernels one by one."""
        return self.new_steps(capture=False)

    def said(self, voice: int, chunk_tokens: tuple[int, ...], *, seed: int) -> Speech:
        return speech(self.token2wav, self.voices[voice], chunk_tokens, seed=seed)

    def new_steps(self, *, capture: bool = True) -> CapturedSteps:
        return CapturedSteps(self.token2wav, slots=4, chunk_tokens=(12,), capture=capture)


def random_voice(prompt_tokens: int, *, vocab_size: int = 6561) -> VoiceFeatures:
    drawn = torch.Generator().manual_seed(prompt_tokens)
    return VoiceFeatures(
        prompt_tokens=torch.randint(0, vocab_size, (prompt_tokens,), generator=drawn),
        prompt_mel=torch.randn(2 * prompt_tokens, 80, generator=drawn) - 5,
        speaker=torch.randn(192, generator=drawn),
    )


def relative_error(mel: Tensor, exact: Tensor) -> float:
    return ((mel - exact).norm() / (exact - exact.mean()).norm()).item()


@pytest.fixture(scope="module")
def road(loaded: Callable[[str, torch.dtype], Token2Wav]) -> Callable[[torch.dtype], Road]:
    return cache(lambda dtype: Road(loaded("cuda", dtype)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_captured_steps_make_the_samples_of_uncaptured_ones(
    road: Callable[[torch.dtype], Road], dtype: torch.dtype
) -> None:
    here = road(dtype)
    captured = in_steps(here.steps, here.speeches, PLAN)
    launched = in_steps(here.launched, here.speeches, PLAN)
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
    road: Callable[[torch.dtype], Road], dtype: torch.dtype, most: float
) -> None:
    exact_road, here = road(torch.float32), road(dtype)
    exact = [mel_by_the_oracle(exact_road.token2wav, said) for said in exact_road.short]
    mels = mels_in_a_batch(here.launched.step, here.short)
    alone = [mels_in_a_batch(here.launched.step, [said])[0] for said in here.short]
    vocoder = exact_road.token2wav.vocoder
    sounds = vocoded(vocoder, mels, exact, dtype)
    for mel, right, by_itself, sound in zip(mels, exact, alone, sounds, strict=True):
        assert relative_error(mel, right) < most
        assert relative_error(mel, by_itself) < most
        assert signal_to_noise_db(sound, vocoded_by_the_oracle(vocoder, right)) > 35


def test_two_lanes_and_a_voice_being_opened_harm_nobody(road: Callable[[torch.dtype], Road]) -> None:
    here = road(torch.float16)
    firsts = [here.said(voice, (6 + voice, 5), seed=10 + voice) for voice in range(3)]
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
