"""Log-mel to embeddings: each chunk alone, each chunk within our padded batches, and the reference's own batches."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from comparison import Comparison, Recorded
from reference_batch import encode_like_the_reference
from torch import Tensor, nn

from step_audio_vllm.config import StepAudio2EncoderConfig
from step_audio_vllm.encoder import Adapter, AudioEncoder, embed_chunks
from step_audio_vllm.features import placeholders

TOLERANCE = 2e-5


def recognises(folder: Path) -> bool:
    return (folder / "config.json").exists() and (folder / "expected.safetensors").exists()


def build(config: StepAudio2EncoderConfig, weights: Mapping[str, Tensor] | Recorded) -> tuple[AudioEncoder, Adapter]:
    """Encoder and adaptor in float32 from tensors by their checkpoint names; what they do not ask for stays unread."""
    parts = nn.ModuleDict({"encoder": AudioEncoder(config), "adapter": Adapter(config)})
    parts.load_state_dict({name: weights[name].float() for name in parts.state_dict()})
    encoder, adapter = parts["encoder"], parts["adapter"]
    assert isinstance(encoder, AudioEncoder) and isinstance(adapter, Adapter), "ModuleDict keeps what it was given"
    return encoder, adapter


@torch.inference_mode()
def compare(comparison: Comparison) -> None:
    config = StepAudio2EncoderConfig(**comparison.json("config.json"))
    encoder, adapter = build(config, comparison.load("weights.safetensors"))
    inputs = comparison.load("inputs.safetensors")
    expected = comparison.load("expected.safetensors")
    chunks = {name.removeprefix("mel."): inputs[name].float().T for name in inputs}  # (T, M)
    compare_alone(comparison, encoder, adapter, chunks, expected)
    compare_reference_batches(comparison, encoder, adapter, chunks, expected)


def compare_alone(
    comparison: Comparison,
    encoder: AudioEncoder,
    adapter: Adapter,
    chunks: dict[str, Tensor],
    expected: Recorded,
) -> None:
    """Alone, and all together in one padded batch: the same rows are asked of both."""
    together = embed_chunks(encoder, adapter, list(chunks.values()), max_batch_frames=10**9)
    for (name, chunk), row in zip(chunks.items(), together, strict=True):
        if f"single.{name}.encoder" in expected:
            pooled = encoder(chunk.T[None], [len(chunk)])[0]
            comparison.close(f"single.{name}.encoder", pooled, expected[f"single.{name}.encoder"], TOLERANCE)
        recorded = expected[f"single.{name}.adapter"]
        comparison.close(f"single.{name}.adapter", embed_chunks(encoder, adapter, [chunk])[0], recorded, TOLERANCE)
        comparison.close(f"single.{name}.adapter, in our batch", row, recorded, TOLERANCE)


def compare_reference_batches(
    comparison: Comparison,
    encoder: AudioEncoder,
    adapter: Adapter,
    chunks: dict[str, Tensor],
    expected: Recorded,
) -> None:
    """Our layers under the reference's mask, where a chunk's rows depend on its neighbours."""
    for name, batch in comparison.json("cases.json")["batch"].items():
        members = [chunks[str(frames)] for frames in batch["mel_frames"]]
        pooled = encode_like_the_reference(encoder, members)
        embedded = adapter(pooled)
        for i, chunk in enumerate(members):
            valid, rows = (len(chunk) - 1) // 4, placeholders(len(chunk))
            for part, ours in (("encoder", pooled[i, :valid]), ("adapter", embedded[i, :rows])):
                key = f"batch.{name}.{i}.{part}"
                comparison.close(key, ours, expected[key], TOLERANCE)
