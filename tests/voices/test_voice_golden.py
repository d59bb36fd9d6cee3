"""Voice features against the reference's recorded numbers (golden folders voice and pipeline)."""

from __future__ import annotations

from pathlib import Path

import compare_voice
import pytest
import torch
from comparison import Comparison
from golden_folders import copies
from safetensors.torch import load_file

from sidecar.audio.decode import decode_recording
from sidecar.voices.features import VoiceExtractor


@pytest.mark.parametrize("folder", copies("voice"))
def test_voice_features_are_the_recorded_numbers(folder: Path) -> None:
    assert compare_voice.recognises(folder)
    comparison = Comparison(folder)
    compare_voice.compare(comparison)
    rows = comparison.finish()
    assert len(rows) > 20
    assert [str(row) for row in rows if not row.good] == []


@pytest.mark.parametrize("folder", copies("pipeline"))
def test_a_recording_becomes_the_recorded_prompt(folder: Path) -> None:
    recording = decode_recording((folder / "prompt.wav").read_bytes())
    features = VoiceExtractor.from_folder(folder / "token2wav").features(recording.samples, recording.sample_rate_hz)
    recorded = load_file(folder / "inputs.safetensors")
    assert features.prompt_tokens.tolist() == recorded["prompt_token"][0].tolist()
    torch.testing.assert_close(features.prompt_mel, recorded["prompt_mel"][0], atol=1e-3, rtol=0)
    torch.testing.assert_close(features.speaker, recorded["spk_embedding"][0], atol=1e-3, rtol=0)
