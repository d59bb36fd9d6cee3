"""Token2wav at tiny size, its random weights taken from the recordings in the repository; and voices made of noise."""

from __future__ import annotations

import json

import torch
from golden_folders import DATA
from torch import Tensor

from sidecar.timebase import tokens_to_frames
from sidecar.token2wav import Token2Wav, VoiceFeatures
from sidecar.token2wav.config import FlowConfig
from sidecar.token2wav.flow import Flow, FlowNetwork
from sidecar.token2wav.history import RECENT, HistoryPolicy
from sidecar.token2wav.weights import load_flow, load_vocoder

WEIGHTS = DATA / "flow" / "weights.safetensors"


def tiny_config(*, steps: int = 10) -> FlowConfig:
    sizes = json.loads((DATA / "flow" / "config.json").read_text(encoding="utf-8"))
    kept = ("input_size", "output_size", "spk_embed_dim", "vocab_size", "encoder", "decoder")
    return FlowConfig.from_mapping({key: sizes[key] for key in kept}, steps=steps)


def tiny_network(*, steps: int = 10) -> FlowNetwork:
    return load_flow(WEIGHTS, tiny_config(steps=steps))


def tiny_flow(history: HistoryPolicy = RECENT, *, steps: int = 10, dtype: torch.dtype = torch.float32) -> Flow:
    return Flow(tiny_network(steps=steps), history=history, dtype=dtype)


def tiny_token2wav(*, steps: int = 2) -> Token2Wav:
    """Two flow steps are enough for what is not held to a recording, and quick."""
    return Token2Wav(tiny_flow(steps=steps), load_vocoder(DATA / "hift" / "hift.safetensors"))


def speech_tokens(count: int, *, seed: int = 0) -> Tensor:
    """(count,) ids of the tiny vocabulary."""
    return torch.randint(0, tiny_config().vocab_size, (count,), generator=torch.Generator().manual_seed(seed))


def voice_of(prompt_tokens: int, *, seed: int = 0) -> VoiceFeatures:
    drawn = torch.Generator().manual_seed(seed)
    return VoiceFeatures(
        prompt_tokens=speech_tokens(prompt_tokens, seed=seed + 1000),
        prompt_mel=torch.randn(tokens_to_frames(prompt_tokens), 80, generator=drawn) - 5,
        speaker=torch.randn(192, generator=drawn),
    )


def signal_to_noise_db(ours: Tensor, reference: Tensor) -> float:
    noise = (ours.double() - reference.double()).square().sum().clamp(min=1e-30)
    return (10 * torch.log10(reference.double().square().sum() / noise)).item()


def assert_sounds_like(ours: bytes, alone: bytes) -> None:
    """Two wav files; who shares a step rounds otherwise than who is alone in it."""
    samples, expected = (torch.frombuffer(bytearray(file[44:]), dtype=torch.int16) for file in (ours, alone))
    assert samples.shape == expected.shape
    assert signal_to_noise_db(samples, expected) > 40
