"""What vLLM asks before any recording is there: how long one may be, how many ids it costs, and the largest of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from vllm import envs
from vllm.multimodal.parse import MultiModalDataParser
from vllm.multimodal.processing import BaseDummyInputsBuilder, BaseProcessingInfo

from step_audio_vllm import features, spoken_turn
from step_audio_vllm.vocabulary import AUDIO_PATCH, Vocabulary


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
        return {"audio": features.block_tokens(self.longest_clip_samples(seq_len))}

    def longest_clip_samples(self, seq_len: int) -> int:
        """The longest clip, in whole placeholders, that vLLM decodes and whose tokens fit into `seq_len`.

        To the placeholder: vLLM makes room for a clip of this length, and refuses a longer one even if its prompt fits.
        """
        chunks, tokens_left = divmod(seq_len, features.block_tokens(features.CHUNK_SAMPLES))
        rest = max(tokens_left - features.BLOCK_MARKERS, 0) * features.PLACEHOLDER_SAMPLES
        longest_decoded = int(envs.VLLM_MAX_AUDIO_DECODE_DURATION_S) * features.SAMPLE_RATE_HZ
        return min(chunks * features.CHUNK_SAMPLES + rest, longest_decoded)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        return Vocabulary.from_ids(self.get_tokenizer().get_vocab())

    @cached_property
    def spoken_ids(self) -> frozenset[int]:
        return spoken_turn.allowed_ids(self.get_tokenizer().get_vocab())

    def check_length(self, samples: int) -> None:
        """
        Raises:
            ValueError: one recording alone would fill the context, or be longer than vLLM decodes.
        """
        context = self.ctx.model_config.max_model_len
        longest = self.longest_clip_samples(context)
        if samples <= longest:
            return
        fits = features.block_tokens(samples) < context
        raise ValueError(
            f"a recording of {samples / features.SAMPLE_RATE_HZ:.1f} s is too long: one item may have "
            f"{longest / features.SAMPLE_RATE_HZ:.1f} s; "
            + (
                f"send it as several items of {features.CHUNK_SAMPLES // features.SAMPLE_RATE_HZ} s side by side"
                if fits
                else f"send less of it, or give the server more context than --max-model-len {context}"
            )
        )

    def check_spoken_turn(self, token_ids: Sequence[int]) -> None:
        """
        Raises:
            ValueError: it holds ids that are no part of a spoken turn, or more than the context.
        """
        context = self.ctx.model_config.max_model_len
        if len(token_ids) >= context:
            raise ValueError(
                f"a spoken turn of {len(token_ids)} token ids is too long: the context has {context}; "
                "leave early turns out"
            )
        if forbidden := sorted(set(token_ids) - self.spoken_ids):
            raise ValueError(
                f"a spoken turn may hold text, speech tokens and the markers of a speech section; it holds token ids "
                f"{', '.join(map(str, forbidden[:5]))}, which are none of these"
            )


class StepAudio2DummyInputsBuilder(BaseDummyInputsBuilder[StepAudio2ProcessingInfo]):
    """The largest recordings, for vLLM to measure memory with."""

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        return AUDIO_PATCH * mm_counts.get("audio", 0)

    def get_dummy_mm_data(self, seq_len: int, mm_counts: Mapping[str, int], mm_options: Any = None) -> Any:  # noqa: ARG002
        # not of `seq_len`, which may be what one step takes: a recording is encoded whole, in one step
        context = self.info.ctx.model_config.max_model_len
        audios = self._get_dummy_audios(
            length=self.info.longest_clip_samples(context),
            num_audios=mm_counts.get("audio", 0),
            overrides=(mm_options or {}).get("audio"),
        )
        return {"audio": audios}
