"""The vocoder's small Fourier transform, there and back, for lines of different lengths; as `stft.py` does it."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from sidecar.timebase import SAMPLES_PER_FRAME
from sidecar.token2wav.stft import BINS, HOP_SAMPLES, N_FFT, ShortTimeFourier
from sidecar.token2wav.vocoder import MAX_MAGNITUDE, SAMPLE_LIMIT

_SAMPLES = tl.constexpr(SAMPLES_PER_FRAME)
_N_FFT = tl.constexpr(N_FFT)
_HOP = tl.constexpr(HOP_SAMPLES)
_HOPS_A_FRAME = tl.constexpr(SAMPLES_PER_FRAME // HOP_SAMPLES)
_REACH = tl.constexpr(N_FFT // HOP_SAMPLES)  # spectra that a sample lies in
_BINS = tl.constexpr(BINS)
_PARTS = tl.constexpr(2 * BINS)
_PARTS_BLOCK = tl.constexpr(triton.next_power_of_2(2 * BINS))
_MAX_MAGNITUDE = tl.constexpr(MAX_MAGNITUDE)
_SAMPLE_LIMIT = tl.constexpr(SAMPLE_LIMIT)


def _spectra_a_program(spectra: int, device: torch.device) -> int:
    return triton.next_power_of_2(spectra) if device.type == "cpu" else 64  # the interpreter pays for each program


@triton.jit
def _analyse(signal, table, lengths, out, frames, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    line = tl.program_id(1)
    samples = (tl.load(lengths + line) * _SAMPLES).to(tl.int32)
    spectrum = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    own = (samples > 0) & (spectrum <= samples // _HOP)
    part = tl.arange(0, _PARTS_BLOCK)
    total = tl.zeros((BLOCK, _PARTS_BLOCK), tl.float32)
    for n in range(0, _N_FFT):
        # both ends are mirrored about their outermost sample
        at = tl.abs(spectrum * _HOP + n - _N_FFT // 2)
        at = tl.where(at < samples, at, 2 * (samples - 1) - at)
        x = tl.load(signal + line * frames * _SAMPLES + at, mask=own, other=0.0)
        total += x[:, None] * tl.load(table + part * _N_FFT + n, mask=part < _PARTS, other=0.0)[None, :]
    row = line * (frames * _HOPS_A_FRAME + 1) + spectrum
    tl.store(out + row[:, None] * _PARTS + part[None, :], total, mask=own[:, None] & (part < _PARTS)[None, :])


@triton.jit
def _synthesise(spectra, table, window_power, lengths, out, broken, frames, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    line = tl.program_id(1)
    hops = (tl.load(lengths + line) * _HOPS_A_FRAME).to(tl.int32)
    hop = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    own = hop < hops
    total = tl.zeros((BLOCK, _HOP), tl.float32)
    power = tl.zeros((BLOCK, _HOP), tl.float32)
    for later in range(0, _REACH):
        # From the spectrum that has only just begun at these samples to the one that is about to end.
        spectrum = hop + _REACH // 2 - later
        n = later * _HOP + tl.arange(0, _HOP)
        seen = own & (spectrum >= 0) & (spectrum <= hops)
        row = (line * (frames * _HOPS_A_FRAME + 1) + spectrum) * _PARTS
        for k in tl.static_range(_BINS):
            magnitude = tl.exp(tl.load(spectra + row + k, mask=seen, other=0.0))
            # comparisons, not `minimum`: a number that is none stays so
            magnitude = tl.where(seen, tl.where(magnitude > _MAX_MAGNITUDE, _MAX_MAGNITUDE, magnitude), 0.0)
            angle = tl.sin(tl.load(spectra + row + _BINS + k, mask=seen, other=0.0))
            real = magnitude * tl.cos(angle)
            imaginary = magnitude * tl.sin(angle)
            total += real[:, None] * tl.load(table + k * _N_FFT + n)[None, :]
            total += imaginary[:, None] * tl.load(table + (_BINS + k) * _N_FFT + n)[None, :]
        power += tl.where(seen, 1.0, 0.0)[:, None] * tl.load(window_power + n)[None, :]
    x = total / tl.where(own[:, None], power, 1.0)
    x = tl.where(x > _SAMPLE_LIMIT, _SAMPLE_LIMIT, tl.where(x < -_SAMPLE_LIMIT, -_SAMPLE_LIMIT, x))
    sample = hop[:, None] * _HOP + tl.arange(0, _HOP)[None, :]
    tl.store(out + line * frames * _SAMPLES + sample, x, mask=own[:, None])
    not_numbers = tl.sum(tl.sum(tl.where(own[:, None] & (x != x), 1, 0), axis=1), axis=0)  # noqa: PLR0124
    tl.store(broken + line, 1, mask=not_numbers > 0)


def analyse(signal: Tensor, lengths: Tensor, stft: ShortTimeFourier, dtype: torch.dtype) -> Tensor:
    """Signal (B, 480 F) -> its spectra (B, 120 F + 1, 18) in `dtype`: 9 real parts, then 9 imaginary ones.

    Line b has lengths[b] frames, and is mirrored at its own ends; what lies beyond them may be anything.
    """
    batch, frames = signal.shape[0], signal.shape[1] // SAMPLES_PER_FRAME
    out = signal.new_empty(batch, signal.shape[1] // HOP_SAMPLES + 1, 2 * BINS, dtype=dtype)
    block = _spectra_a_program(out.shape[1], out.device)
    _analyse[triton.cdiv(out.shape[1], block), batch](
        signal, stft.analysis, lengths, out, frames, BLOCK=block, num_warps=4
    )
    return out


def synthesise(spectra: Tensor, lengths: Tensor, stft: ShortTimeFourier, broken: Tensor) -> Tensor:
    """What the network gives, (B, 120 F + 1, 18) float32: 9 magnitudes' logarithms and 9 phases, -> (B, 480 F) samples.

    Args:
        broken: (B,) int32; set to 1 for a line with a sample that is no number.
    """
    batch, hops = spectra.shape[0], spectra.shape[1] - 1
    out = spectra.new_empty(batch, hops * HOP_SAMPLES)
    block = _spectra_a_program(hops, out.device)
    _synthesise[triton.cdiv(hops, block), batch](
        spectra, stft.synthesis, stft.window_power, lengths, out, broken, out.shape[1] // SAMPLES_PER_FRAME,
        BLOCK=block, num_warps=2,
    )  # fmt: skip
    return out
