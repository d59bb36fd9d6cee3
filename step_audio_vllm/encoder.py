"""Log-mel to language-model embeddings: a Whisper-style encoder (arXiv 2212.04356) and a small adaptor.

Tensors in, tensors out. A chunk gives the same rows alone as in a padded batch, whatever else is in it, so answers do
not depend on traffic.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from step_audio_vllm.config import StepAudio2EncoderConfig
from step_audio_vllm.features import placeholders

#: Log-mel frames that go through the encoder together: 8 full chunks. Bounds its activations to a few hundred MiB at
#: full size, however many recordings are scheduled at once.
MAX_BATCH_FRAMES = 8 * 2502

_ADAPTER_WIDTH = 2048  # a constant of the architecture, not in the config


class Attention(nn.Module):
    """Bidirectional multi-head attention over the frames of one chunk."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, visible: int, mask: Tensor | None) -> Tensor:
        """x (B, T, C); keys 0 … visible-1 can be seen, of them those that `mask` (B, 1, 1, visible) marks True."""
        q, k, v = (
            projected.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, H, T, D)
            for projected in (self.query(x), self.key(x), self.value(x))
        )
        # cut here: a cut in front of the projections would have them copy x
        mixed = F.scaled_dot_product_attention(q, k[:, :, :visible], v[:, :, :visible], attn_mask=mask)
        return self.out(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class Block(nn.Module):
    """One pre-norm transformer layer."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = Attention(width, heads)
        self.attn_ln = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.mlp_ln = nn.LayerNorm(width)

    def forward(self, x: Tensor, visible: int, mask: Tensor | None) -> Tensor:
        x = x + self.attn(self.attn_ln(x), visible, mask)
        return x + self.mlp(self.mlp_ln(x))  # type: ignore[no-any-return]


class AudioEncoder(nn.Module):
    """Two convolutions, learned positions, transformer layers, pooling by two: 100 Hz to 25 Hz."""

    def __init__(self, config: StepAudio2EncoderConfig) -> None:
        super().__init__()
        width = config.n_audio_state
        self.conv1 = nn.Conv1d(config.n_mels, width, 3, padding=1)
        self.conv2 = nn.Conv1d(width, width, 3, stride=2, padding=1)
        self.positional_embedding = nn.Embedding(config.n_audio_ctx, width)
        self.blocks = nn.ModuleList(Block(width, config.n_audio_head) for _ in range(config.n_audio_layer))
        self.after_norm = nn.LayerNorm(width)

    def forward(self, mels: Tensor, frames: Sequence[int]) -> Tensor:
        """Encode chunks padded to the longest.

        Args:
            mels: (B, M, T), zeros from frame `frames[i]` on in row i.
            frames: log-mel frames of each chunk, at least 3.

        Returns:
            (B, ceil(T/2)//2, C), zeros past the ceil(frames[i]/2)//2 pooled frames of row i.
        """
        equal = min(frames) == max(frames)
        # on the CPU first, then one copy: building masks on the device would wait for it
        lengths = torch.tensor(frames).to(mels.device, non_blocking=True)  # (B,)
        x: Tensor = F.gelu(self.conv1(mels))  # (B, C, T)
        if not equal:
            # conv1 smears the chunk's end into the padding, where alone there would be zeros
            x = x * _before(lengths, x.shape[-1])[:, None].to(x.dtype)
        # contiguous: sums keep the layout of their first term, so every layer would add and copy across it
        x = F.gelu(self.conv2(x)).transpose(1, 2).contiguous()  # (B, ceil(T/2), C)
        x = x + self.positional_embedding.weight[: x.shape[1]]
        # the last frame of a chunk sees nothing but the appended silence; it asks, but is not seen
        visible = (max(frames) - 1) // 2
        mask = None if equal else _before((lengths - 1) // 2, visible)[:, None, None]  # (B, 1, 1, visible)
        for block in self.blocks:
            x = block(x, visible, mask)
        x = F.avg_pool1d(x.transpose(1, 2), 2).transpose(1, 2)  # (B, ceil(T/2)//2, C)
        x = self.after_norm(x)
        if not equal:
            x = x * _before((lengths + 1) // 2 // 2, x.shape[1])[..., None].to(x.dtype)
        return x


class Adapter(nn.Module):
    """25 Hz encoder frames to 12.5 Hz embeddings of the language model."""

    def __init__(self, config: StepAudio2EncoderConfig) -> None:
        super().__init__()
        width, kernel = config.n_audio_state, config.kernel_size
        self.conv = nn.Conv1d(width, width, kernel, stride=config.adapter_stride, padding=1)
        self.linear1 = nn.Linear(width, _ADAPTER_WIDTH)
        self.linear2 = nn.Linear(_ADAPTER_WIDTH, config.llm_dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) to (B, ceil(T/2), llm_dim)."""
        x = F.gelu(self.conv(x.transpose(1, 2))).transpose(1, 2)
        return self.linear2(F.relu(self.linear1(x)))  # type: ignore[no-any-return]


def embed_chunks(
    encoder: AudioEncoder, adapter: Adapter, chunks: Sequence[Tensor], max_batch_frames: int = MAX_BATCH_FRAMES
) -> list[Tensor]:
    """Embeddings of any number of chunks, in padded batches of like length.

    Args:
        chunks: (T_i, M) log-mel each.

    Returns:
        (placeholders(T_i), llm_dim) for each chunk, in the order given.
    """
    rows: list[Tensor] = [torch.empty(0)] * len(chunks)
    weight = encoder.conv1.weight
    for group in like_lengths([len(chunk) for chunk in chunks], max_batch_frames):
        batch = [chunks[i].to(weight.device, weight.dtype) for i in group]
        mels = nn.utils.rnn.pad_sequence(batch, batch_first=True).transpose(1, 2)  # (B, M, T)
        embedded = adapter(encoder(mels, [len(chunk) for chunk in batch]))
        for i, row in zip(group, embedded, strict=True):
            rows[i] = row[: placeholders(len(chunks[i]))]
    return rows


def like_lengths(frames: Sequence[int], max_batch_frames: int) -> list[list[int]]:
    """Indices in batches, longest first, of at most that many frames with padding; never an empty batch.

    A batch of unequal lengths gets half of them. On an H100 half of MAX_BATCH_FRAMES keeps the GPU busy, and what more
    would come in is padding, and attention under a mask, which takes three times as long as without.
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(frames)), key=lambda i: -frames[i]):
        longest = frames[batches[-1][0]] if batches else 0
        limit = max_batch_frames if frames[index] == longest else max_batch_frames // 2
        if batches and (len(batches[-1]) + 1) * longest <= limit:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def _before(lengths: Tensor, size: int) -> Tensor:
    """(B, size) bool: True at positions below each row's length."""
    return torch.arange(size, device=lengths.device) < lengths[:, None]
