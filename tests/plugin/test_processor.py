"""How much room the processor asks vLLM to keep for a recording."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.vllm


@pytest.mark.parametrize("seq_len", [3, 100, 256, 314, 315, 316, 317, 318, 2048, 4096])
def test_room_is_kept_for_every_clip_that_fits_into_a_prompt(seq_len: int) -> None:
    from step_audio_vllm.features import PLACEHOLDER_SAMPLES  # noqa: PLC0415
    from step_audio_vllm.processor import StepAudio2ProcessingInfo, block_tokens  # noqa: PLC0415 - brings vLLM

    info = object.__new__(StepAudio2ProcessingInfo)
    longest = info.longest_clip_samples(seq_len)
    assert block_tokens(longest) == info.get_mm_max_tokens_per_item(seq_len, {})["audio"] <= seq_len
    # three more: one for a chunk that begins costs two markers
    assert block_tokens(longest + 3 * PLACEHOLDER_SAMPLES) > seq_len


def test_no_more_room_is_kept_than_for_ten_minutes() -> None:
    from step_audio_vllm.processor import StepAudio2ProcessingInfo  # noqa: PLC0415 - brings vLLM

    assert object.__new__(StepAudio2ProcessingInfo).longest_clip_samples(16384) == 600 * 16000
