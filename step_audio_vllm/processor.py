"""Recordings on their way into vLLM: parsed, turned into log-mel, and given their placeholders in the prompt.

A recording is one `<audio_patch>` in the prompt that arrives, and one `<audio_start>` … `<audio_end>` block for each of
its 25 s chunks in the prompt that leaves. No Hugging Face processor is involved.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import BatchFeature
from vllm.multimodal.inputs import MultiModalFieldConfig, MultiModalKwargsItems
from vllm.multimodal.parse import AudioProcessorItems, MultiModalDataItems, MultiModalDataParser
from vllm.multimodal.processing import (
    BaseDummyInputsBuilder,
    BaseMultiModalProcessor,
    BaseProcessingInfo,
    PromptReplacement,
    PromptUpdateDetails,
)

from step_audio_vllm import compat, features
from step_audio_vllm.vocabulary import AUDIO_END, AUDIO_PATCH, AUDIO_START

#: The longest recording vLLM decodes by default. What fits into a prompt is decided by its length.
LONGEST_CLIP_S = 600

_BLOCK_MARKERS = 2


def block_tokens(samples: int) -> int:
    """Prompt tokens of a recording at 16 kHz: placeholders and markers of all its chunks."""
    return sum(
        features.placeholders(features.mel_frames(chunk)) + _BLOCK_MARKERS for chunk in features.chunk_lengths(samples)
    )


class StepAudio2ProcessingInfo(BaseProcessingInfo):
    """What vLLM asks before any recording is there."""

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        return {"audio": None}

    def get_data_parser(self) -> MultiModalDataParser:
        # soxr by name: the default resampler differs between versions and may not be installed
        return MultiModalDataParser(
            target_sr=features.SAMPLE_RATE_HZ,
            target_channels=1,
            audio_resample_method="soxr",
            expected_hidden_size=self._get_expected_hidden_size(),
        )

    def get_mm_max_tokens_per_item(self, seq_len: int, mm_counts: Mapping[str, int]) -> Mapping[str, int]:  # noqa: ARG002
        return {"audio": block_tokens(self.longest_clip_samples(seq_len))}

    def longest_clip_samples(self, seq_len: int) -> int:
        """The longest clip, in whole placeholders, that is accepted and whose tokens fit into `seq_len`.

        To the placeholder: vLLM makes room for a clip of this length, and refuses a longer one even if its prompt fits.
        """
        chunks, tokens_left = divmod(seq_len, block_tokens(features.CHUNK_SAMPLES))
        rest = max(tokens_left - _BLOCK_MARKERS, 0) * features.PLACEHOLDER_SAMPLES
        return min(chunks * features.CHUNK_SAMPLES + rest, LONGEST_CLIP_S * features.SAMPLE_RATE_HZ)

    def special_token(self, name: str) -> int:
        """A token's id in the loaded tokenizer.

        Raises:
            ValueError: the tokenizer lacks it.
        """
        token = self.get_tokenizer().get_vocab().get(name)
        if token is None:
            raise ValueError(f"the tokenizer has no token {name!r}: this is not a Step-Audio 2 tokenizer")
        return int(token)


class StepAudio2DummyInputsBuilder(BaseDummyInputsBuilder[StepAudio2ProcessingInfo]):
    """The largest recordings, for vLLM to measure memory with."""

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        return AUDIO_PATCH * mm_counts.get("audio", 0)

    def get_dummy_mm_data(self, seq_len: int, mm_counts: Mapping[str, int], mm_options: Any = None) -> Any:
        audios = self._get_dummy_audios(
            length=self.info.longest_clip_samples(seq_len),
            num_audios=mm_counts.get("audio", 0),
            overrides=(mm_options or {}).get("audio"),
        )
        return {"audio": audios}


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
            ValueError: a recording is empty or not finite; vLLM answers that request, and only that one, with 400.
        """
        if not mm_items or mm_items.get_count("audio", strict=False) == 0:
            return BatchFeature()
        audios = mm_items.get_items("audio", AudioProcessorItems)
        clips = [features.clip_features(torch.as_tensor(audio).float()) for audio in audios.get_all()]
        dtype = self.info.ctx.model_config.dtype
        return BatchFeature(
            {
                "input_features": torch.cat([mels for mels, _ in clips]).to(dtype),  # (T of all, M)
                "chunk_frames": torch.tensor([n for _, frames in clips for n in frames]),  # (chunks of all,)
                "num_chunks": torch.tensor([len(frames) for _, frames in clips]),  # (clips,)
            }
        )

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
        start, end, patch = (self.info.special_token(name) for name in (AUDIO_START, AUDIO_END, AUDIO_PATCH))

        def blocks(item: int) -> PromptUpdateDetails[list[int]]:
            fields = out_mm_kwargs["audio"][item].get_data()
            frames: list[int] = fields["chunk_frames"].tolist()
            assert sum(frames) == len(fields["input_features"]), "a clip's chunks do not add up to its log-mel"
            audios = mm_items.get_items("audio", AudioProcessorItems)
            ids = [token for chunk in frames for token in (start, *[patch] * features.placeholders(chunk), end)]
            expected = block_tokens(audios.get_audio_length(item))
            assert len(ids) == expected, f"{len(ids)} prompt tokens for a clip that was counted as {expected}"
            return PromptUpdateDetails.select_token_id(ids, patch)

        return [PromptReplacement(modality="audio", target=[patch], replacement=blocks)]
