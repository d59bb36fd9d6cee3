"""Encoder and adaptor: equal to the reference, and the same alone as in any batch."""

from __future__ import annotations

from pathlib import Path

import compare_audio_encoder
import pytest
import torch
from comparison import Comparison
from golden_folders import copies
from hypothesis import given, settings
from hypothesis import strategies as st

from step_audio_vllm.config import StepAudio2EncoderConfig
from step_audio_vllm.encoder import MAX_BATCH_FRAMES, Adapter, AudioEncoder, embed_chunks, like_lengths
from step_audio_vllm.features import placeholders

TINY = StepAudio2EncoderConfig(n_audio_state=32, n_audio_head=2, n_audio_layer=2, llm_dim=16, n_mels=8)


@pytest.fixture(scope="module")
def parts() -> tuple[AudioEncoder, Adapter]:
    torch.manual_seed(0)
    return AudioEncoder(TINY), Adapter(TINY)


@pytest.mark.parametrize("folder", copies("audio_encoder"))
def test_every_recorded_chunk_equals_the_reference_alone_and_in_our_batch(folder: Path) -> None:
    comparison = Comparison(folder)
    compare_audio_encoder.compare(comparison)
    assert [str(row) for row in comparison.finish() if not row.good] == []


@torch.inference_mode()
def test_a_chunk_of_any_length_gives_the_same_rows_alone_and_in_a_batch(parts: tuple[AudioEncoder, Adapter]) -> None:
    lengths = [*range(3, 27), 40]  # every residue of 8, odd and even, next to a longer one
    torch.manual_seed(1)
    chunks = [torch.randn(length, TINY.n_mels) for length in lengths]
    together = embed_chunks(*parts, chunks)
    for chunk, rows in zip(chunks, together, strict=True):
        (alone,) = embed_chunks(*parts, [chunk])
        assert rows.shape == (placeholders(len(chunk)), TINY.llm_dim)
        torch.testing.assert_close(rows, alone, atol=1e-6, rtol=1e-5)


@settings(max_examples=50)
@given(st.lists(st.integers(3, 2502), max_size=30), st.integers(1, 30000))
def test_batches_hold_every_chunk_once_and_stay_under_the_limit(frames: list[int], limit: int) -> None:
    batches = like_lengths(frames, limit)
    assert sorted(index for batch in batches for index in batch) == list(range(len(frames)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(frames[i] for i in batch) <= limit


@settings(max_examples=50)
@given(st.lists(st.sampled_from([300, 1000, 1001, 2502]), max_size=30), st.integers(1, 30000))
def test_a_batch_of_unequal_chunks_holds_half_as_much(frames: list[int], limit: int) -> None:
    for batch in like_lengths(frames, limit):
        if len({frames[i] for i in batch}) > 1:
            assert len(batch) * max(frames[i] for i in batch) <= limit // 2


def test_eight_full_chunks_go_together_and_no_chunk_is_padded_beside_them() -> None:
    assert like_lengths([100, *[2502] * 8], MAX_BATCH_FRAMES) == [[*range(1, 9)], [0]]
