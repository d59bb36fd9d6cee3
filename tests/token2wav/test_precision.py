"""The flow in 16 bits: as near to float32 as its rounded weights allow, because what adds up is kept in float32."""

from __future__ import annotations

import pytest
import torch
from golden_folders import DATA
from tiny_token2wav import signal_to_noise_db, speech_tokens, tiny_flow, tiny_network, voice_of
from torch import Tensor, nn

from sidecar.token2wav.conformer import Float32Norm
from sidecar.token2wav.flow import Flow
from sidecar.token2wav.solver import time_schedule
from sidecar.token2wav.weights import load_vocoder

HALVES = [torch.float16, torch.bfloat16]
PROMPT_TOKENS = 20


def spoken(flow: Flow) -> Tensor:
    """Three chunks after a prompt, (1, M, 110)."""
    drawn = torch.Generator().manual_seed(0)
    tokens = speech_tokens(55)[None]
    _, state = flow.open_voice(voice_of(PROMPT_TOKENS), torch.randn(1, 80, 2 * PROMPT_TOKENS, generator=drawn))
    mels = []
    for first, after, last in ((0, 13, False), (10, 33, False), (30, 55, True)):
        frames = 2 * (after - first) - (0 if last else 6)
        noise = torch.randn(1, 80, frames, generator=drawn)
        mel, (state,) = flow.step(tokens[:, first:after], [state], noise, last=last)
        mels.append(mel)
    return torch.cat(mels, dim=-1)


def relative_error(ours: Tensor, exact: Tensor) -> float:
    return ((ours - exact).norm() / (exact - exact.mean()).norm()).item()


@pytest.fixture(scope="module")
def exact() -> Tensor:
    return spoken(tiny_flow())


# measured: 0.0008 and 0.0065
@pytest.mark.parametrize(("dtype", "most"), [(torch.float16, 0.0011), (torch.bfloat16, 0.009)])
def test_a_mel_in_16_bits_is_close_to_float32(exact: Tensor, dtype: torch.dtype, most: float) -> None:
    mel = spoken(tiny_flow(dtype=dtype))
    assert mel.dtype == torch.float32
    assert relative_error(mel, exact) < most


# measured: 64 and 46 dB. With one source for both: pitch is summed to a phase, so the sources of two mels drift apart
# however near the mels are
@pytest.mark.parametrize(("dtype", "least_db"), [(torch.float16, 61), (torch.bfloat16, 43)])
def test_its_sound_is_close_to_float32(exact: Tensor, dtype: torch.dtype, least_db: float) -> None:
    vocoder = load_vocoder(DATA / "hift" / "hift.safetensors")
    source = 0.1 * torch.randn(1, 1, 480 * exact.shape[-1], generator=torch.Generator().manual_seed(1))
    sound = vocoder.decode(spoken(tiny_flow(dtype=dtype)), source)
    assert signal_to_noise_db(sound, vocoder.decode(exact, source)) > least_db


@pytest.mark.parametrize("dtype", HALVES)
def test_what_the_blocks_add_up_is_float32(dtype: torch.dtype) -> None:
    flow, seen = tiny_flow(dtype=dtype), []
    encoder, estimator = flow.network.encoder, flow.network.decoder.estimator
    for block in (*encoder.encoders, *encoder.up_encoders, *estimator.blocks):
        block.register_forward_hook(lambda _, given, made: seen.extend([given[0].dtype, made[0].dtype]))
    flow.open_voice(voice_of(PROMPT_TOKENS), torch.zeros(1, 80, 2 * PROMPT_TOKENS))
    assert len(seen) > 40
    assert set(seen) == {torch.float32}


@pytest.mark.parametrize("dtype", HALVES)
def test_flow_times_are_embedded_in_float32_whatever_the_layers_are(dtype: torch.dtype) -> None:
    in_float32, in_16_bits = tiny_flow().modulation, tiny_flow(dtype=dtype).modulation
    assert torch.equal(in_16_bits.blocks, in_float32.blocks)
    assert torch.equal(in_16_bits.final, in_float32.final)
    exact = 1 - torch.cos(torch.linspace(0, 1, 11, dtype=torch.float64) * torch.pi / 2)
    torch.testing.assert_close(time_schedule(10).double(), exact, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("dtype", HALVES)
def test_the_sum_of_the_flow_steps_is_not_rounded_to_16_bits(dtype: torch.dtype) -> None:
    mel = spoken(tiny_flow(dtype=dtype))
    assert (mel == mel.to(dtype).float()).float().mean() < 0.1


@pytest.mark.parametrize("dtype", HALVES)
def test_the_encoders_norms_see_a_variance_that_16_bits_would_lose(dtype: torch.dtype) -> None:
    # rounded to 16 bits before the norm, such a step would be all the same number
    x = 100 + 0.01 * torch.randn(1, 4, 64, generator=torch.Generator().manual_seed(0))
    norm = Float32Norm(64, eps=1e-12)
    expected = norm(x)
    assert norm.to(dtype)(x).dtype == dtype
    torch.testing.assert_close(norm(x).float(), expected, rtol=0.01, atol=0.01)
    blocks = [
        block for stack in (tiny_network().encoder.encoders, tiny_network().encoder.up_encoders) for block in stack
    ]
    for block in blocks:
        norms = [module for module in block.modules() if isinstance(module, nn.LayerNorm)]
        assert [type(module) for module in norms] == [Float32Norm] * 2
        assert {module.eps for module in norms} == {1e-12}


@pytest.mark.parametrize("dtype", HALVES)
def test_layers_and_caches_are_in_16_bits(dtype: torch.dtype) -> None:
    flow = tiny_flow(dtype=dtype)
    _, state = flow.open_voice(voice_of(PROMPT_TOKENS), torch.zeros(1, 80, 2 * PROMPT_TOKENS))
    kept = (state.speaker, state.encoder.token_keys_values, state.encoder.frame_keys_values,
            state.encoder.lookahead_past, state.encoder.upsample_past, state.estimator.keys_values,
            state.estimator.conv_past, *flow.network.parameters())  # fmt: skip
    assert {value.dtype for value in kept} == {dtype}
