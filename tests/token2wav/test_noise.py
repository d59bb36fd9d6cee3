"""Noise counted by frame: the same however a stream is cut, other for another seed, and never used twice."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.token2wav.noise import PROMPT_SEED, RecordedNoise, SeededNoise

NOISE = SeededNoise()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**63 - 1), st.lists(st.integers(1, 9), min_size=1, max_size=8))
def test_chunk_borders_do_not_change_the_noise(seed: int, chunks: list[int]) -> None:
    total = sum(chunks)
    starts = [sum(chunks[:row]) for row in range(len(chunks))]
    mel = [NOISE.speech_mel(seed, 10, start, chunk, 80) for start, chunk in zip(starts, chunks, strict=True)]
    assert torch.equal(torch.cat(mel, dim=1), NOISE.speech_mel(seed, 99, 0, total, 80))
    source = [NOISE.source(seed, start, chunk) for start, chunk in zip(starts, chunks, strict=True)]
    assert torch.equal(torch.cat(source), NOISE.source(seed, 0, total))


def test_noise_is_standard_normal() -> None:
    for drawn in (NOISE.speech_mel(3, 0, 0, 2000, 80), NOISE.source(3, 0, 100), NOISE.prompt_mel(2000, 80)):
        assert abs(drawn.mean().item()) < 0.01
        assert abs(drawn.std().item() - 1) < 0.01
        assert drawn.dtype == torch.float32


def test_frames_seeds_and_uses_all_draw_other_numbers() -> None:
    # what 32 bits or a float would take for one seed, and the largest a request may bring
    seeds = [0, 1, 2**32, 2**53, 2**53 + 1, 2**63 - 2, 2**63 - 1, PROMPT_SEED]
    drawn = torch.cat(
        [
            *(NOISE.speech_mel(seed, 0, 0, 100, 80) for seed in seeds),
            *(NOISE.source(seed, 0, 1).reshape(-1, 80).T for seed in seeds),
            NOISE.prompt_mel(500, 80),
        ],
        dim=1,
    )
    frames = drawn.T.tolist()
    assert len({tuple(frame) for frame in frames}) == len(frames)


@pytest.mark.parametrize("far", [10 * 3600 * 50, 2**32, 2**40, 2**63])
def test_noise_never_runs_out_and_never_comes_again(far: int) -> None:
    mel = torch.cat([NOISE.speech_mel(1, 0, first, 50, 80) for first in (0, far - 50, far)], dim=1)
    source = torch.cat([NOISE.source(1, first, 2) for first in (0, far - 2, far)]).view(-1, 80).T
    columns = torch.cat([mel, source], dim=1).T.tolist()
    assert len({tuple(column) for column in columns}) == len(columns)
    assert torch.equal(NOISE.speech_mel(1, 0, far - 1, 2, 80), torch.stack([mel[:, 99], mel[:, 100]], dim=1))


def test_noise_is_the_same_in_every_process() -> None:
    # written down once: with other numbers, the same seed would no longer give the same sound
    assert NOISE.prompt_mel(5, 80)[0, :3].tolist() == pytest.approx([1.0692768, 0.2825702, -0.7175677])
    assert NOISE.speech_mel(42, 0, 1000, 2, 80)[0].tolist() == pytest.approx([-1.6284837, -0.9145051])
    assert NOISE.source(42, 7, 1)[0, :3].tolist() == pytest.approx([0.8535, 0.0214, -0.9596], abs=1e-4)


def test_recorded_noise_is_read_by_the_rule_it_was_recorded_with() -> None:
    columns = torch.arange(400.0).expand(80, 400)
    noise = RecordedNoise(columns)
    assert noise.prompt_mel(220, 80)[0].tolist() == list(range(220))
    starts = [noise.speech_mel(0, 220, done, 50, 80)[0, 0].item() for done in (0, 50, 100, 150, 5000)]
    assert starts == [220, 270, 320, 320, 320]
    with pytest.raises(ValueError, match="400 frames"):
        noise.speech_mel(0, 220, 100, 81, 80)
    assert not noise.source(7, 3, 2).any()
