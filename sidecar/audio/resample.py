"""The one resampler: a Hann-windowed sinc, as `torchaudio.transforms.Resample` computes it by default."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

#: Zero crossings of the sinc to either side, and how far below the lower Nyquist frequency it cuts.
ZERO_CROSSINGS = 6
ROLLOFF = 0.99

#: Output phases computed together. Between common rates that is all of them; between odd ones (44,099 to 16,000 Hz) a
#: kernel for all phases at once would take gigabytes.
_PHASES_AT_ONCE = 320
_LEAST_PHASES = 64


def resample(x: NDArray[np.float32], from_hz: int, to_hz: int) -> NDArray[np.float32]:
    """x (..., S) at `from_hz` -> (..., ceil(S to_hz / from_hz)) at `to_hz`; every row of its own.

    With o and n the two rates over their greatest common divisor, output n b + p is the sinc around input
    o b + p o / n: a convolution of stride o for each of the n phases p.
    """
    samples = x.shape[-1]
    if from_hz == to_hz or samples == 0:
        return x
    divisor = math.gcd(from_hz, to_hz)
    # 48 to 16 kHz has one phase: 64 of them side by side give the same outputs from a matrix of a useful width.
    repeats = -(-_LEAST_PHASES * divisor // to_hz)
    stride, phases = from_hz // divisor * repeats, to_hz // divisor * repeats
    wanted = -(-samples * to_hz // from_hz)
    rows = torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32)).reshape(-1, 1, samples)
    out = torch.cat([_convolve(rows, stride, phases, first) for first in range(0, phases, _PHASES_AT_ONCE)], dim=1)
    flat = out.transpose(1, 2).reshape(rows.shape[0], -1)[:, :wanted]  # phases run fastest
    return flat.reshape(*x.shape[:-1], wanted).numpy()


def _convolve(rows: torch.Tensor, stride: int, phases: int, first_phase: int) -> torch.Tensor:
    """Rows (R, 1, S) -> (R, phases of this block, ceil(S / stride))."""
    kernel, first_tap = _kernel(stride, phases, first_phase)
    samples, blocks = rows.shape[-1], -(-rows.shape[-1] // stride)
    last_tap = (blocks - 1) * stride + first_tap + kernel.shape[-1]
    start = max(first_tap, 0)
    padded = F.pad(
        rows[..., start : max(min(last_tap, samples), start)],
        (max(-first_tap, 0), max(last_tap - max(samples, start), 0)),
    )
    return (padded[:, 0].unfold(-1, kernel.shape[-1], stride) @ kernel.T).transpose(1, 2)


@lru_cache(maxsize=16)
def _kernel(stride: int, phases: int, first_phase: int) -> tuple[torch.Tensor, int]:
    """The sinc of one block of phases, (phases of the block, taps), and where its first tap lies.

    Computed in float64: in float32 the tables of two machines would not agree.
    """
    base = ROLLOFF * min(stride, phases)
    width = math.ceil(ZERO_CROSSINGS * stride / base)
    phase = np.arange(first_phase, min(first_phase + _PHASES_AT_ONCE, phases))
    first_tap = phase[0] * stride // phases - width
    last_tap = -(-phase[-1] * stride // phases) + width
    tap = np.arange(first_tap, last_tap + 1)
    u = np.clip((tap / stride - phase[:, None] / phases) * base, -ZERO_CROSSINGS, ZERO_CROSSINGS)
    weights = np.sinc(u) * np.cos(np.pi * u / (2 * ZERO_CROSSINGS)) ** 2 * base / stride
    return torch.from_numpy(weights.astype(np.float32)), int(first_tap)
