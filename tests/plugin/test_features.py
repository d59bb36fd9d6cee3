"""Waveform to log-mel, and counts, held to recordings of the reference and to rules of their own."""

from __future__ import annotations

from pathlib import Path

import compare_frontend
import pytest
import torch
from comparison import Comparison
from golden_folders import copies
from hypothesis import given
from hypothesis import strategies as st

from step_audio_vllm import features


@pytest.mark.parametrize("folder", copies("frontend"))
def test_log_mel_filters_and_every_count_equal_the_reference(folder: Path) -> None:
    comparison = Comparison(folder)
    compare_frontend.compare(comparison)
    assert [str(row) for row in comparison.finish() if not row.good] == []


@given(st.integers(1, features.CHUNK_SAMPLES))
def test_placeholders_of_a_chunk_follow_the_closed_form(samples: int) -> None:
    assert features.placeholders(features.mel_frames(samples)) == (samples + 959) // 1280


@pytest.mark.parametrize(
    ("samples", "expected"),
    [(1, [0]), (320, [0]), (321, [1]), (16000, [13]), (400000, [313]), (400001, [313, 0]), (960000, [313, 313, 125])],
)
def test_a_recording_is_cut_every_25_seconds_and_a_crumb_has_no_placeholder(samples: int, expected: list[int]) -> None:
    counts = [features.placeholders(features.mel_frames(chunk)) for chunk in features.chunk_lengths(samples)]
    assert counts == expected


@pytest.mark.parametrize("samples", [1, 159, 160, 161, 400000, 400001])
def test_silence_is_flat_and_has_as_many_frames_as_were_counted(samples: int) -> None:
    mels, frames = features.clip_features(torch.zeros(samples))
    assert frames == [features.mel_frames(chunk) for chunk in features.chunk_lengths(samples)]
    assert mels.shape == (sum(frames), features.MEL_BINS)
    assert (mels == -1.5).all()


def test_a_chunk_does_not_hear_the_chunk_before_it() -> None:
    torch.manual_seed(0)
    quiet = torch.randn(8000) * 1e-3
    loud = torch.cat([torch.randn(features.CHUNK_SAMPLES), quiet])
    mels, frames = features.clip_features(loud)
    alone, _ = features.clip_features(quiet)
    assert torch.equal(mels[frames[0] :], alone)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_a_recording_whose_numbers_are_not_finite_is_refused(value: float) -> None:
    waveform = torch.zeros(16000)
    waveform[800] = value
    with pytest.raises(features.NotFinite):
        features.clip_features(waveform)


def test_an_empty_recording_is_refused_and_counts_no_chunk() -> None:
    assert features.chunk_lengths(0) == []
    with pytest.raises(ValueError, match="at least one sample"):
        features.clip_features(torch.zeros(0))
