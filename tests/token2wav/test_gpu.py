"""On a GPU: the CPU's numbers, and the same ones every time. At full width, since small layers take other kernels."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_token2wav import WEIGHTS, signal_to_noise_db, tiny_config
from torch import Tensor

from sidecar.token2wav import Token2Wav, VoiceFeatures
from sidecar.token2wav.config import FlowConfig, load_flow_config
from sidecar.token2wav.flow import Flow
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
