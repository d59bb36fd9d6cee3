"""Recordings on their way into vLLM: parsed, turned into log-mel, and given their placeholders in the prompt.

A recording is one `<audio_patch>` in the prompt that arrives, and one `<audio_start>` … `<audio_end>` block for each of
its 25 s chunks in the prompt that leaves. A spoken turn of the history arrives the same way and leaves as its own token
ids, with nothing to encode. No Hugging Face processor is involved.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import BatchFeature
from vllm.multimodal.inputs import MultiModalFieldConfig, MultiModalKwargsItems
from vllm.multimodal.parse import AudioProcessorItems, MultiModalDataItems
from vllm.multimodal.processing import BaseMultiModalProcessor, PromptReplacement, PromptUpdateDetails

from step_audio_vllm import compat, features, spoken_turn
from step_audio_vllm.processing_info import StepAudio2ProcessingInfo


class StepAudio2MultiModalProcessor(BaseMultiModalProcessor[StepAudio2ProcessingInfo]):
    """Log-mel of every chunk, and the prompt with a placeholder for each row the encoder will give."""

    def _apply_hf_processor_main(
        self, prompt: Any = None, mm_items: MultiModalDataItems | None = None, *_: Any, **keywords: Any
    ) -> Any:
        tokenizer = self.info.get_tokenizer()
        return compat.processed(self._features(mm_items), prompt, tokenizer, keywords)

    def _features(self, mm_items: MultiModalDataItems | None) -> BatchFeature:
        """Flat features: every chunk of every recording one after another, so that nothing is padded.

        Raises:
            ValueError: an item is empty, not finite, too long, a spoken turn that cannot be one, or embeddings; vLLM
                answers that request, and only that one, with 400.
        """
        if not mm_items or mm_items.get_count("audio", strict=False) == 0:
            return BatchFeature()
        audios = mm_items["audio"]
        if not isinstance(audios, AudioProcessorItems):
            raise ValueError("embeddings of sound are not taken; send the recording itself, as input_audio")
        clips = [self._clip(samples_of(audio)) for audio in audios.get_all()]
        dtype = self.info.ctx.model_config.dtype
        return BatchFeature(
            {
                "input_features": torch.cat([mels for mels, _ in clips]).to(dtype),  # (T of all, M)
                # (chunks of all,)
                "chunk_frames": torch.tensor([n for _, frames in clips for n in frames], dtype=torch.long),
                "num_chunks": torch.tensor([len(frames) for _, frames in clips]),  # (clips,)
            }
        )

    def _clip(self, samples: NDArray[np.float32]) -> tuple[Tensor, list[int]]:
        """Log-mel (T, M) and the frames of each chunk; a spoken turn has none of either."""
        token_ids = spoken_turn.token_ids_of(samples)
        if token_ids is not None:
            self.info.check_spoken_turn(token_ids)
            return torch.empty(0, features.MEL_BINS), []
        self.info.check_length(len(samples))
        return features.clip_features(torch.from_numpy(samples))

    def _get_mm_fields_config(
        self,
        hf_inputs: BatchFeature,
        hf_processor_mm_kwargs: Mapping[str, object],  # noqa: ARG002
    ) -> Mapping[str, MultiModalFieldConfig]:
        if "num_chunks" not in hf_inputs:
            return {}
        num_chunks = hf_inputs["num_chunks"]
        clip_frames = torch.stack([frames.sum() for frames in hf_inputs["chunk_frames"].split(num_chunks.tolist())])
        flat = MultiModalFieldConfig.flat_from_sizes
        return {
            "input_features": flat("audio", clip_frames),
            # counts stay on the CPU: reading them on the GPU would wait for it
            "chunk_frames": flat("audio", num_chunks, keep_on_cpu=True),
            "num_chunks": MultiModalFieldConfig.batched("audio", keep_on_cpu=True),
        }

    def _get_prompt_updates(
        self,
        mm_items: MultiModalDataItems,
        hf_processor_mm_kwargs: Mapping[str, object],  # noqa: ARG002
        out_mm_kwargs: MultiModalKwargsItems,
    ) -> Sequence[PromptReplacement]:
        patch = self.info.vocabulary.audio_patch

        def replacement(item: int) -> PromptUpdateDetails[list[int]]:
            samples = samples_of(mm_items.get_items("audio", AudioProcessorItems).get(item))
            token_ids = spoken_turn.token_ids_of(samples)
            if token_ids is None:
                token_ids = self._blocks(len(samples), out_mm_kwargs["audio"][item].get_data())
            # only placeholders are embedded, and a spoken turn has none
            return PromptUpdateDetails.select_token_id(token_ids, patch)

        return [PromptReplacement(modality="audio", target=[patch], replacement=replacement)]

    def _blocks(self, samples: int, fields: Mapping[str, Any]) -> list[int]:
        """A recording's placeholders, chunk by chunk between their markers."""
        words = self.info.vocabulary
        frames: list[int] = fields["chunk_frames"].tolist()
        assert sum(frames) == len(fields["input_features"]), "a clip's chunks do not add up to its log-mel"
        ids = [
            token
            for chunk in frames
            for token in (words.audio_start, *[words.audio_patch] * features.placeholders(chunk), words.audio_end)
        ]
        expected = features.block_tokens(samples)
        assert len(ids) == expected, f"{len(ids)} prompt tokens for a clip that was counted as {expected}"
        return ids


def samples_of(audio: Any) -> NDArray[np.float32]:
    """One channel as vLLM's parser leaves it: an array, or whatever the caller of the Python interface gave."""
    samples: NDArray[np.float32] = torch.as_tensor(audio).float().numpy(force=True)
    return samples
