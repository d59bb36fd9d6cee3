"""What computes the steps, by where token2wav lies; and whether the memory that takes is there."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch

from sidecar.memory import CONTEXT_BYTES, token2wav_memory
from sidecar.streaming.chunking import ChunkPlan
from sidecar.streaming.steps import EagerSteps, Steps
from sidecar.token2wav.upsample_encoder import LOOKAHEAD_TOKENS

if TYPE_CHECKING:
    from sidecar.settings import Settings
    from sidecar.token2wav.token2wav import Token2Wav

logger = logging.getLogger(__name__)


def make_steps(token2wav: Token2Wav, plan: ChunkPlan, settings: Settings) -> Steps[Any]:
    """Captured in graphs on a GPU, which takes a while, and as they are on a CPU.

    Raises:
        SettingsError: the GPU has no room for so many streams; says how many it has.
    """
    if not settings.on_gpu:
        return EagerSteps(token2wav)
    # its kernels need Triton, which there may not be without a GPU
    from sidecar.token2wav.graphs import CapturedSteps  # noqa: PLC0415

    _refuse_too_little_memory(token2wav, plan, settings)
    return CapturedSteps(token2wav, slots=settings.slots, chunk_tokens=plan.sizes)


def _refuse_too_little_memory(token2wav: Token2Wav, plan: ChunkPlan, settings: Settings) -> None:
    from sidecar.token2wav.gpu.slots import allocate  # noqa: PLC0415

    flow = token2wav.flow
    weights = sum(
        tensor.nbytes for part in (flow.network, token2wav.vocoder) for tensor in (*part.parameters(), *part.buffers())
    )
    most_tokens = plan.chunk_tokens + LOOKAHEAD_TOKENS - 1
    one = allocate(flow.config, 1, most_tokens=most_tokens, dtype=flow.dtype, device="meta")
    budget = token2wav_memory(settings).of_model(weights=weights, bytes_per_stream=one.bytes_per_slot)
    logger.info("%s", budget.words())
    free, _ = torch.cuda.mem_get_info(flow.device)
    # what this process has taken is in the budget: CUDA's own, the weights, the default voice
    budget.refuse_too_little(free + torch.cuda.memory_reserved(flow.device) + CONTEXT_BYTES)
