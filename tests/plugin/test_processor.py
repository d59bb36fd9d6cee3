"""What the processor tells vLLM of a recording's length, what it refuses, and items without sound in the model."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from step_audio_vllm.config import StepAudio2EncoderConfig
from step_audio_vllm.encoder import Adapter, AudioEncoder, embed_chunks
from step_audio_vllm.features import PLACEHOLDER_SAMPLES, block_tokens

pytestmark = pytest.mark.vllm


@pytest.mark.parametrize("seq_len", [3, 100, 256, 314, 315, 316, 317, 318, 2048, 4096])
def test_room_is_kept_for_every_clip_that_fits_into_a_prompt(seq_len: int) -> None:
    from step_audio_vllm.processing_info import StepAudio2ProcessingInfo  # noqa: PLC0415 - brings vLLM

    info = object.__new__(StepAudio2ProcessingInfo)
    longest = info.longest_clip_samples(seq_len)
    assert block_tokens(longest) == info.get_mm_max_tokens_per_item(seq_len, {})["audio"] <= seq_len
    # three more: one for a chunk that begins costs two markers
    assert block_tokens(longest + 3 * PLACEHOLDER_SAMPLES) > seq_len


def test_no_more_room_is_kept_than_for_ten_minutes() -> None:
    from step_audio_vllm.processing_info import StepAudio2ProcessingInfo  # noqa: PLC0415 - brings vLLM

    assert object.__new__(StepAudio2ProcessingInfo).longest_clip_samples(16384) == 600 * 16000


def test_embeddings_in_place_of_a_recording_are_a_request_error() -> None:
    # vLLM lets them through where it was started with --enable-mm-embeds
    from vllm.multimodal.parse import AudioEmbeddingItems, MultiModalDataItems  # noqa: PLC0415

    from step_audio_vllm.processor import StepAudio2MultiModalProcessor  # noqa: PLC0415 - brings vLLM

    items = MultiModalDataItems({"audio": AudioEmbeddingItems([torch.zeros(3, 8)])})
    with pytest.raises(ValueError, match="send the recording itself"):
        object.__new__(StepAudio2MultiModalProcessor)._features(items)


@pytest.mark.parametrize("num_chunks", [[0], [0, 2, 0, 1], [1, 0, 0, 2]])
def test_items_without_sound_give_no_rows_and_shift_no_others(num_chunks: list[int]) -> None:
    from step_audio_vllm.model import StepAudio2ForCausalLM  # noqa: PLC0415 - brings vLLM

    config = StepAudio2EncoderConfig(n_audio_ctx=64, n_audio_state=24, n_audio_head=3, n_audio_layer=1, llm_dim=40)
    model = object.__new__(StepAudio2ForCausalLM)  # with no language model, which these rows never meet
    nn.Module.__init__(model)
    model.encoder, model.adapter = AudioEncoder(config).bfloat16(), Adapter(config).bfloat16()
    mels = [torch.randn(frames, config.n_mels) for frames in (100, 3, 40)][: sum(num_chunks)]
    with torch.inference_mode():
        rows = embed_chunks(model.encoder, model.adapter, mels)
        items = model.embed_multimodal(
            input_features=torch.cat([*mels, torch.empty(0, config.n_mels)]),
            chunk_frames=torch.tensor([len(mel) for mel in mels], dtype=torch.long),
            num_chunks=torch.tensor(num_chunks),
        )
    assert [item.dtype for item in items] == [torch.bfloat16] * len(num_chunks)
    left = iter(rows)
    for item, count in zip(items, num_chunks, strict=True):
        expected = [next(left) for _ in range(count)]
        assert item.shape == (sum(map(len, expected)), config.llm_dim)
        assert torch.equal(item, torch.cat([item[:0], *expected]))
