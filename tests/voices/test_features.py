"""What a voice's recording may be, and what comes of it; with the small ONNX networks of a synthetic checkpoint."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from voice_parts import sweep

from sidecar.errors import CheckpointError, UnusableAudio
from sidecar.voices.features import VoiceExtractor, fit


@pytest.fixture(scope="module")
def folder(model: Path) -> Path:
    return model / "token2wav"


@pytest.fixture(scope="module")
def extractor(folder: Path) -> VoiceExtractor:
    return VoiceExtractor.from_folder(folder)


@settings(max_examples=20, deadline=None)
@given(samples=st.integers(48_000, 150_000))
def test_a_prompt_has_two_mel_frames_for_each_token(extractor: VoiceExtractor, samples: int) -> None:
    features = extractor.features(sweep(samples / 48_000, 48_000), 48_000)
    assert features.prompt_mel.shape == (2 * len(features.prompt_tokens), 80)
    assert features.prompt_tokens.dtype == torch.int64
    assert features.speaker.shape == (192,)


@pytest.mark.parametrize("rate_hz", [8_000, 22_050, 44_100])
def test_the_longest_recording_fits_the_tokenizer_at_any_rate(extractor: VoiceExtractor, rate_hz: int) -> None:
    assert len(extractor.features(sweep(30.0, rate_hz), rate_hz).prompt_tokens) == 750


@pytest.mark.parametrize("seconds", [0.0, 0.99, 30.01])
def test_recordings_outside_1_to_30_s_are_refused_with_the_limits(extractor: VoiceExtractor, seconds: float) -> None:
    with pytest.raises(UnusableAudio, match=r"1 to 30 s are taken"):
        extractor.features(sweep(seconds, 16_000), 16_000)


def test_a_recording_that_is_not_finite_is_refused(extractor: VoiceExtractor) -> None:
    broken = sweep(2.0, 16_000)
    broken[1000] = np.nan
    with pytest.raises(UnusableAudio, match="not finite"):
        extractor.features(broken, 16_000)


@pytest.mark.parametrize("loudest", [0.0, 4e-4])
def test_a_first_channel_without_speech_is_refused_even_beside_one_with(
    extractor: VoiceExtractor, loudest: float
) -> None:
    empty_track = np.random.default_rng(0).uniform(-loudest, loudest, 48_000).astype(np.float32)
    with pytest.raises(UnusableAudio, match="silent in its first channel; send a mono recording"):
        extractor.features(np.stack([empty_track, sweep(3.0)]), 16_000)
    with pytest.raises(UnusableAudio, match="is silent; send a mono recording"):
        extractor.features(empty_track, 16_000)


def test_a_quiet_recording_is_taken(extractor: VoiceExtractor) -> None:
    """At -50 dB: sweep() has 0.3 at its loudest."""
    assert len(extractor.features(sweep(1.0) / np.float32(100), 16_000).prompt_tokens) == 25


@pytest.mark.parametrize("rate_hz", [1_000, 11_025, 44_099, 192_000])
def test_the_shortest_recording_has_25_tokens_at_any_rate(extractor: VoiceExtractor, rate_hz: int) -> None:
    assert len(extractor.features(sweep(1.0, rate_hz), rate_hz).prompt_tokens) == 25


def test_tokens_and_speaker_hear_the_first_channel_and_the_mel_their_mean(extractor: VoiceExtractor) -> None:
    first, second = sweep(2.0, 24_000), sweep(2.0, 24_000, low_hz=900.0)
    both = extractor.features(np.stack([first, second]), 24_000)
    alone, mean = extractor.features(first, 24_000), extractor.features((first + second) / np.float32(2), 24_000)
    assert torch.equal(both.prompt_tokens, alone.prompt_tokens) and torch.equal(both.speaker, alone.speaker)
    assert torch.equal(both.prompt_mel, mean.prompt_mel)
    assert not torch.equal(mean.prompt_mel, alone.prompt_mel)


def test_a_mel_is_fitted_by_repeating_its_last_frame_or_cutting_its_end() -> None:
    mel = torch.arange(6.0).view(3, 2)
    assert fit(mel, 5).tolist() == [[0, 1], [2, 3], [4, 5], [4, 5], [4, 5]]
    assert fit(mel, 2).tolist() == [[0, 1], [2, 3]]


def test_a_missing_network_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"speech_tokenizer_v2_25hz\.onnx is missing"):
        VoiceExtractor.from_folder(tmp_path)


def test_a_broken_network_is_named(tmp_path: Path, folder: Path) -> None:
    tokenizer = "speech_tokenizer_v2_25hz.onnx"
    (tmp_path / tokenizer).write_bytes((folder / tokenizer).read_bytes()[:200])
    with pytest.raises(CheckpointError, match=r"speech_tokenizer_v2_25hz\.onnx .*is no ONNX network"):
        VoiceExtractor.from_folder(tmp_path)


def test_networks_that_were_swapped_are_refused(tmp_path: Path, folder: Path) -> None:
    tokenizer, speaker = "speech_tokenizer_v2_25hz.onnx", "campplus.onnx"
    (tmp_path / tokenizer).write_bytes((folder / speaker).read_bytes())
    with pytest.raises(CheckpointError, match=r"has 1 inputs .*, not 2"):
        VoiceExtractor.from_folder(tmp_path)
