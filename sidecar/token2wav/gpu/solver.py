"""From noise to mel as `sidecar/token2wav/solver.py` does it, with both halves of guidance in one batch of kernels."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from sidecar.token2wav.estimator import Modulation
from sidecar.token2wav.flow import FlowNetwork
from sidecar.token2wav.gpu.estimator import FusedEstimator
from sidecar.token2wav.gpu.rows import Field, Rows
from sidecar.token2wav.gpu.slots import Slots
from sidecar.token2wav.history import PAST_FRAMES
from sidecar.token2wav.solver import time_schedule

_BLOCK = 1024


@triton.jit
def _guided_step(mel, narrow, velocity, with_voice, without, numbers, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < numbers
    forward = tl.load(velocity + at, mask=inside, other=0.0).to(tl.float32)
    away = tl.load(velocity + numbers + at, mask=inside, other=0.0).to(tl.float32)
    x = tl.load(mel + at, mask=inside, other=0.0) + with_voice * forward - without * away
    tl.store(mel + at, x, mask=inside)
    tl.store(narrow + at, x, mask=inside)


class FusedSolver:
    """`Solver` over slots.

    Args:
        network: its weights are copied into the layout that the kernels take; it may be dropped afterwards.
        modulation: of the first K times of `time_schedule`, as `Flow` keeps it.
        dtype: of layers and of the slots. What is added up from block to block and from step to step is float32.
        past_frames: how many of a stream's own frames a chunk sees before it; what the slots' rings were made for.
    """

    def __init__(
        self, network: FlowNetwork, modulation: Modulation, dtype: torch.dtype, *, past_frames: int = PAST_FRAMES
    ) -> None:
        config = network.config
        times = time_schedule(config.steps).tolist()
        self.cfg_rate = config.cfg_rate
        self.step_sizes = [after - before for before, after in pairwise(times)]
        with torch.inference_mode():
            self.estimator = FusedEstimator(network.decoder.estimator, modulation, dtype, past_frames=past_frames)

    @torch.inference_mode()
    def __call__(self, mu: Tensor, noise: Tensor, rows: Rows, slots: Slots) -> Tensor:
        """The next chunk of B streams; what they remember of it is in their slots afterwards.

        Args:
            mu: (B, T, M) in `dtype`, of which a line's own frames count.
            noise: (B, T, M) float32; left as it is.

        Returns:
            mel (B, T, M) float32. What stands beyond a line's own frames means nothing.
        """
        estimator = self.estimator
        mel = noise.clone(memory_format=torch.contiguous_format)
        noisy = mel.to(estimator.dtype, copy=True).flatten(0, 1)  # (B T, M)
        given = estimator.condition(mu, F.embedding(rows.column(Field.SLOT), slots.speaker))
        work = estimator.workspace(rows, slots)
        for step, size in enumerate(self.step_sizes):
            velocity = estimator(noisy, given, step, work)
            _guided_step[(triton.cdiv(mel.numel(), _BLOCK),)](
                mel, noisy, velocity, size * (1 + self.cfg_rate), size * self.cfg_rate, mel.numel(),
                BLOCK=_BLOCK, num_warps=4,
            )  # fmt: skip
        return mel
