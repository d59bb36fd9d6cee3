"""Noise counted by frame: the same however a stream is cut, other for another seed, and never used twice."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.token2wav.noise import PROMPT_SEED, RecordedNoise, SeededNoise, philox, signed_seed

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
    assert NOISE.prompt_mel(5, 80)[0, :3].tolist() == pytest.approx([0.943101, 0.2064627, -0.8851982], rel=1e-5)
    assert NOISE.speech_mel(42, 0, 1000, 2, 80)[0].tolist() == pytest.approx([-2.24398, -1.3205245], rel=1e-5)
    assert NOISE.source(42, 7, 1)[0, :3].tolist() == pytest.approx([0.7634446, 0.0450112, -1.193739], rel=1e-5)


# counter, key and words as the authors of Philox publish them beside their code (Random123, kat_vectors)
KNOWN_WORDS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_WORDS)
def test_the_counter_gives_the_words_its_authors_publish(
    counter: tuple[int, ...], key: tuple[int, int], words: tuple[int, ...]
) -> None:
    first, second, third, fourth = (np.array([word], dtype=np.uint64) for word in counter)
    assert tuple(int(word[0]) for word in philox((first, second, third, fourth), key)) == words


def test_harmonics_and_their_neighbours_in_time_are_independent() -> None:
    drawn = NOISE.source(5, 0, 200)  # (96,000, 9)
    beside = torch.cat([drawn[:-1], drawn[1:]], dim=1)
    assert (torch.corrcoef(beside.T) - torch.eye(18)).abs().max() < 0.02
    assert drawn.pow(4).mean().item() == pytest.approx(3, abs=0.03)  # a uniform or cut-off distribution has less


@pytest.mark.parametrize("seed", [-1, 2**63, 2**64 - 1, 2**70 + 5])
def test_a_seed_of_any_size_counts_modulo_64_bits(seed: int) -> None:
    drawn = NOISE.source(seed, 3, 1)
    assert torch.equal(drawn, NOISE.source(seed % 2**64, 3, 1))
    assert torch.equal(drawn, NOISE.source(signed_seed(seed), 3, 1))
    assert torch.tensor(signed_seed(seed), dtype=torch.int64) % 2**32 == seed % 2**32


def test_recorded_noise_is_read_by_the_rule_it_was_recorded_with() -> None:
    columns = torch.arange(400.0).expand(80, 400)
    noise = RecordedNoise(columns)
    assert noise.prompt_mel(220, 80)[0].tolist() == list(range(220))
    starts = [noise.speech_mel(0, 220, done, 50, 80)[0, 0].item() for done in (0, 50, 100, 150, 5000)]
    assert starts == [220, 270, 320, 320, 320]
    with pytest.raises(ValueError, match="400 frames"):
        noise.speech_mel(0, 220, 100, 81, 80)
    assert not noise.source(7, 3, 2).any()
