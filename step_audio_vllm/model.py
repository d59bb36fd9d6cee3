"""Step-Audio 2 under vLLM: audio encoder and adaptor in front of vLLM's own Qwen2.

The bases and `supports_*` flags stay in this file: vLLM remembers what a model can do by this file's hash.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from vllm.config import ModelConfig, SpeechToTextConfig, SpeechToTextParams, VllmConfig
from vllm.inputs import TokensPrompt
from vllm.model_executor.models.interfaces import (
    MultiModalEmbeddings,
    SupportsLoRA,
    SupportsMultiModal,
    SupportsPP,
    SupportsTranscription,
)
from vllm.model_executor.models.module_mapping import MultiModelKeys
from vllm.model_executor.models.utils import (
    AutoWeightsLoader,
    WeightsMapper,
    init_vllm_registered_model,
    maybe_prefix,
)
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.sequence import IntermediateTensors
from vllm.tokenizers import cached_tokenizer_from_config

from step_audio_vllm import features, transcription
from step_audio_vllm.encoder import Adapter, AudioEncoder, embed_chunks
from step_audio_vllm.processing_info import StepAudio2DummyInputsBuilder, StepAudio2ProcessingInfo
from step_audio_vllm.processor import StepAudio2MultiModalProcessor
from step_audio_vllm.reply_text import ReplyText, reply_text
from step_audio_vllm.vocabulary import AUDIO_PATCH


@MULTIMODAL_REGISTRY.register_processor(
    StepAudio2MultiModalProcessor,
    info=StepAudio2ProcessingInfo,
    dummy_inputs=StepAudio2DummyInputsBuilder,
)
class StepAudio2ForCausalLM(nn.Module, SupportsMultiModal, SupportsPP, SupportsLoRA, SupportsTranscription):
    """The model class that `architectures` in config.json names."""

    supported_languages = transcription.LANGUAGES

    hf_to_vllm_mapper = WeightsMapper(
        orig_to_new_prefix={"model.": "language_model.model.", "lm_head.": "language_model.lm_head."}
    )
    packed_modules_mapping = {  # noqa: RUF012 - vLLM's own annotation
        "qkv_proj": ["q_proj", "k_proj", "v_proj"],
        "gate_up_proj": ["gate_proj", "up_proj"],
    }

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        self.config = vllm_config.model_config.hf_config
        self.quantized = vllm_config.quant_config is not None
        # plain torch modules: quantization and tensor parallelism leave the small encoder as it is
        with self._mark_tower_model(vllm_config, "audio"):  # type: ignore[operator]
            self.encoder = AudioEncoder(self.config.audio_encoder_config)
            self.adapter = Adapter(self.config.audio_encoder_config)
        with self._mark_language_model(vllm_config):  # type: ignore[operator]
            self.language_model = init_vllm_registered_model(
                vllm_config=vllm_config,
                hf_config=self.config.text_config,
                prefix=maybe_prefix(prefix, "language_model"),
                architectures=["Qwen2ForCausalLM"],
            )
        self.make_empty_intermediate_tensors = self.language_model.make_empty_intermediate_tensors

    @classmethod
    def get_placeholder_str(cls, modality: str, i: int) -> str | None:  # noqa: ARG003
        if modality.startswith("audio"):
            return AUDIO_PATCH
        raise ValueError(f"this model takes audio; got {modality!r}")

    @classmethod
    def get_speech_to_text_config(cls, model_config: ModelConfig, task_type: str) -> SpeechToTextConfig:  # noqa: ARG003
        return SpeechToTextConfig(
            sample_rate=features.SAMPLE_RATE_HZ,
            max_audio_clip_s=transcription.CLIP_SECONDS,
            overlap_chunk_second=transcription.LOOK_BACK_SECONDS,
        )

    @classmethod
    def get_generation_prompt(cls, stt_params: SpeechToTextParams) -> TokensPrompt:
        """The prompt of one clip of `/v1/audio/transcriptions` or `/v1/audio/translations`.

        Raises:
            ValueError: the request asks for what this model does not do; vLLM answers it with 400.
        """
        model = stt_params.model_config
        tokenizer = cached_tokenizer_from_config(model)
        given = {"prompt": stt_params.request_prompt, "hotwords": stt_params.hotwords or ""}
        for field, text in given.items():
            transcription.require_plain(tokenizer, text, field)
        system = transcription.instruction(
            translate=stt_params.task_type == "translate", to_language=stt_params.to_language, **given
        )
        return TokensPrompt(
            prompt_token_ids=transcription.prompt_ids(tokenizer, system, model=model.model),
            multi_modal_data={"audio": (stt_params.audio, features.SAMPLE_RATE_HZ)},
        )

    @classmethod
    def post_process_output(cls, text: str) -> str:
        return reply_text(text)

    @classmethod
    def get_streaming_post_processor_cls(cls) -> type[ReplyText]:
        return ReplyText

    def get_mm_mapping(self) -> MultiModelKeys:
        return MultiModelKeys.from_string_field(
            language_model="language_model", connector="adapter", tower_model="encoder"
        )

    def embed_multimodal(self, **kwargs: Any) -> MultiModalEmbeddings:
        """One (placeholders, hidden) tensor for each item, in order; 0 rows for up to 20 ms and for a spoken turn."""
        if kwargs.get("input_features") is None:
            return []
        chunks = kwargs["input_features"].split(kwargs["chunk_frames"].flatten().tolist())  # (T, M) each
        rows = embed_chunks(self.encoder, self.adapter, chunks)
        parts = iter(rows)
        none = self.adapter.linear2.weight.new_empty(0, self.adapter.linear2.out_features)
        return [torch.cat([none, *islice(parts, count)]) for count in kwargs["num_chunks"].flatten().tolist()]

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: Tensor | None = None,
        **_: object,
    ) -> Tensor | IntermediateTensors:
        if intermediate_tensors is not None:
            inputs_embeds = None
        return self.language_model.model(input_ids, positions, intermediate_tensors, inputs_embeds=inputs_embeds)

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        logits: Tensor | None = self.language_model.compute_logits(hidden_states)
        return logits

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Load by the checkpoint's own names.

        Raises:
            ValueError: a parameter, or one part of a fused parameter, got no tensor.
        """
        seen: set[str] = set()

        def noted() -> Iterator[tuple[str, Tensor]]:
            for name, tensor in weights:
                seen.add(name)
                yield name, tensor

        loaded: set[str] = AutoWeightsLoader(self).load_weights(noted(), mapper=self.hf_to_vllm_mapper)
        # vLLM's own check skips linear layers, and cannot see that one part of a fused layer is missing
        expected = checkpoint_names((name for name, _ in self.named_parameters()), self.packed_modules_mapping)
        if self.quantized:
            # its backbone has parameters that no checkpoint has; the encoder and the adaptor stay as they are
            expected = {name for name in expected if name.startswith(("encoder.", "adapter."))}
        if missing := sorted(expected - seen):
            raise ValueError(
                f"the checkpoint has no tensor for {len(missing)} parameters, among them {', '.join(missing[:5])}; "
                "download it again"
            )
        return loaded


def checkpoint_names(parameters: Iterable[str], packed: Mapping[str, Sequence[str]]) -> set[str]:
    """What the checkpoint calls the model's parameters; a fused one is several tensors there."""
    names: set[str] = set()
    for parameter in parameters:
        fused = next((layer for layer in packed if f".{layer}." in parameter), None)
        parts = [parameter.replace(fused, part) for part in packed[fused]] if fused else [parameter]
        names |= {part.removeprefix("language_model.") for part in parts}
    return names
