"""Several chunks in one zero-padded batch, the way the reference encodes them.

There a chunk's rows depend on what else is in the batch; ours do not, and only recordings named `batch` or
`padded_batch` call for this. It runs our encoder's layers under the reference's mask, so that those recordings still
say something about our layers and weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from step_audio_vllm.encoder import Adapter, AudioEncoder
from step_audio_vllm.features import placeholders


def encode_like_the_reference(encoder: AudioEncoder, chunks: Sequence[Tensor]) -> Tensor:
    """(T_i, M) chunks to (B, pooled frames of the longest, C), nothing masked but attention's keys."""
    lengths = torch.tensor([len(chunk) - 2 for chunk in chunks])
    mels = nn.utils.rnn.pad_sequence(list(chunks), batch_first=True).transpose(1, 2).to(encoder.conv1.weight)
    x = F.gelu(encoder.conv2(F.gelu(encoder.conv1(mels)))).transpose(1, 2)
    x = x + encoder.positional_embedding.weight[: x.shape[1]]
    # every second frame of the padded length decides, and an even length starts with the second
    first = 1 - mels.shape[-1] % 2
    keys = torch.arange(x.shape[1]) * 2 + first
    mask = (keys < lengths[:, None])[:, None, None]
    for block in encoder.blocks:
        x = block(x, x.shape[1], mask)
    pooled: Tensor = encoder.after_norm(F.avg_pool1d(x.transpose(1, 2), 2).transpose(1, 2))
    return pooled


def embed_like_the_reference(encoder: AudioEncoder, adapter: Adapter, chunks: Sequence[Tensor]) -> list[Tensor]:
    """The embeddings of each chunk of one prompt, all of them in one padded batch."""
    embedded = adapter(encode_like_the_reference(encoder, chunks))
    return [row[: placeholders(len(chunk))] for row, chunk in zip(embedded, chunks, strict=True)]


def use_in_worker(_: nn.Module) -> None:
    """In vLLM's worker: from now on the chunks of a prompt share one batch (for recordings named `padded_batch`)."""
    import step_audio_vllm.model  # noqa: PLC0415 - brings vLLM, which comparing tensors does without

    step_audio_vllm.model.embed_chunks = embed_like_the_reference
