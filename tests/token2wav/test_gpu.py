"""On a GPU: the CPU's numbers, and the same ones every time. At full width, since small layers take other kernels."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_token2wav import signal_to_noise_db
from torch import Tensor

from sidecar.token2wav import Token2Wav, VoiceFeatures
from sidecar.token2wav.synthetic import write_token2wav

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
