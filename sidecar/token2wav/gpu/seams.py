"""Mel to sound for a step's streams, each joined to its last chunk as `seams/continuous.py` does, in its slot."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from sidecar.timebase import FRAMES_PER_TOKEN, SAMPLES_PER_FRAME, frames_to_samples
from sidecar.token2wav.gpu.decoder import FusedDecoder
from sidecar.token2wav.gpu.fourier import analyse, synthesise
from sidecar.token2wav.gpu.rows import Field, Rows
from sidecar.token2wav.gpu.slots import FINAL_FRAMES, HELD_FRAMES, Slots
from sidecar.token2wav.gpu.source import continue_pitch, harmonic_source
from sidecar.token2wav.overlap import OVERLAP_FRAMES, OVERLAP_SAMPLES, complementary_fade
from sidecar.token2wav.pitch import REACH_FRAMES
from sidecar.token2wav.seams.continuous import FADE_SAMPLES
from sidecar.token2wav.vocoder import Vocoder

_SLOT = tl.constexpr(int(Field.SLOT))
_NEW_TOKENS = tl.constexpr(int(Field.NEW_TOKENS))
_LAST = tl.constexpr(int(Field.LAST))
_HELD = tl.constexpr(int(Field.HELD_FRAMES))
_FRAMES_PER_TOKEN = tl.constexpr(FRAMES_PER_TOKEN)
_SAMPLES = tl.constexpr(SAMPLES_PER_FRAME)
_HELD_FRAMES = tl.constexpr(HELD_FRAMES)
_FINAL_FRAMES = tl.constexpr(FINAL_FRAMES)
_REACH_FRAMES = tl.constexpr(REACH_FRAMES)
_OVERLAP_FRAMES = tl.constexpr(OVERLAP_FRAMES)
_OVERLAP_SAMPLES = tl.constexpr(OVERLAP_SAMPLES)
_FADE_SAMPLES = tl.constexpr(FADE_SAMPLES)
_INFINITY = tl.constexpr(float("inf"))

_FRAMES_BLOCK = 16
_SAMPLES_BLOCK = 1024


def samples_given(held_frames: int, new_frames: int, *, last: bool) -> int:
    """How many samples a stream gets from a step, by what it held before and what the step adds."""
    unheard = min(held_frames, OVERLAP_FRAMES) + new_frames
    return frames_to_samples(unheard if last else max(0, unheard - OVERLAP_FRAMES))


@triton.jit
def _gather(  # type: ignore[no-untyped-def]
    mel, held_mel, control, seen, lengths, broken, line_fields, new_frames, frames,
    M: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    line = tl.program_id(0)
    stream = control + line * line_fields
    new = tl.load(stream + _NEW_TOKENS) * _FRAMES_PER_TOKEN
    held = tl.where(new > 0, tl.load(stream + _HELD), 0)
    slot = tl.load(stream + _SLOT)
    column = tl.arange(0, BLOCK_M)[None, :]
    wrong = 0
    for start in range(0, frames, BLOCK_F):
        frame = start + tl.arange(0, BLOCK_F)[:, None]
        old = (frame < held) & (column < M)
        fresh = (frame >= held) & (frame < held + new) & (column < M)
        x = tl.load(mel + (line * new_frames + frame - held) * M + column, mask=fresh, other=0.0)
        before = tl.load(held_mel + (slot * _HELD_FRAMES + frame) * M + column, mask=old, other=0.0)
        tl.store(
            seen + (line * frames + frame) * M + column, tl.where(old, before, x), mask=(frame < frames) & (column < M)
        )
        wrong += tl.sum(tl.sum(tl.where(tl.abs(x) < _INFINITY, 0, 1), axis=1), axis=0)
    tl.store(lengths + line, (held + new).to(tl.int32))
    tl.store(broken + line, tl.where(wrong > 0, 1, 0))


@triton.jit
def _join(  # type: ignore[no-untyped-def]
    vocoded, fade, seen, f0, turns, lengths, broken, control,
    held_mel, held_f0, held_turns, held_start, speech, out, line_fields, frames, out_samples,
    M: tl.constexpr, BLOCK: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    line = tl.program_id(1)
    stream = control + line * line_fields
    slot = tl.load(stream + _SLOT)
    held = tl.load(stream + _HELD)
    length = tl.load(lengths + line)
    skipped = tl.maximum(held - _OVERLAP_FRAMES, 0) * _SAMPLES
    unheard = tl.where(length > 0, length * _SAMPLES - skipped, 0)
    withheld = tl.minimum(unheard, _OVERLAP_SAMPLES)
    given = tl.where(tl.load(stream + _LAST) > 0, unheard, unheard - withheld)

    sample = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    sound = vocoded + line * frames * _SAMPLES + skipped
    x = tl.load(sound + sample, mask=sample < given, other=0.0)
    # Until more than the overlap is held nothing has been given out, so there is nothing to fade from. With more, the
    # withheld samples begin behind the fade.
    fades = (sample < _FADE_SAMPLES) & (sample < given) & (held > _OVERLAP_FRAMES)
    before = tl.load(speech + slot * _OVERLAP_SAMPLES + sample, mask=fades, other=0.0)
    rising = tl.load(fade + sample, mask=fades, other=0.0)
    falling = tl.load(fade + _FADE_SAMPLES + sample, mask=fades, other=0.0)
    x = tl.where(fades, x * rising + before * falling, x)
    x = tl.where(tl.load(broken + line) > 0, float("nan"), x)
    tl.store(out + line * out_samples + sample, x, mask=sample < out_samples)

    # One program alone reads and writes these samples of the slot; all of its threads read before any writes.
    tl.debug_barrier()
    kept = tl.load(sound + unheard - withheld + sample, mask=sample < withheld, other=0.0)
    tl.store(speech + slot * _OVERLAP_SAMPLES + sample, kept, mask=sample < withheld)
    if tl.program_id(0) == 0:
        holds = tl.minimum(length, _HELD_FRAMES)
        dropped = length - holds
        frame = tl.arange(0, _HELD_FRAMES)
        column = tl.arange(0, BLOCK_M)[None, :]
        there = (frame < holds)[:, None] & (column < M)
        place = (slot * _HELD_FRAMES + frame)[:, None] * M + column
        newest = (line * frames + dropped + frame)[:, None] * M + column
        tl.store(held_mel + place, tl.load(seen + newest, mask=there, other=0.0), mask=there)
        final = frame < holds - _REACH_FRAMES
        pitch = tl.load(f0 + line * frames + dropped + frame, mask=final, other=0.0)
        tl.store(held_f0 + slot * _FINAL_FRAMES + frame, pitch, mask=final)
        turned = tl.load(turns + line * frames + dropped - 1, mask=dropped > 0, other=0.0)
        tl.store(held_turns + slot, turned, mask=dropped > 0)
        tl.store(held_start + slot, 0, mask=dropped > 0)


class FusedVocoder:
    """The vocoder for lines of any length, with the seams and the noise that the product uses."""

    def __init__(self, vocoder: Vocoder, dtype: torch.dtype) -> None:
        self.decoder = FusedDecoder(vocoder, dtype)
        self._source = vocoder.m_source
        self._stft = vocoder.stft
        self._dtype = dtype
        self._fade = torch.stack(complementary_fade(FADE_SAMPLES, vocoder.conv_pre.weight.device))

    def __call__(self, mel: Tensor, rows: Rows, slots: Slots) -> Tensor:
        """The step's sound, and in the slots what the next step needs.

        Args:
            mel: (B, T, M) float32, new frames.

        Returns:
            (B, 480 (T + 8)) float32: a line begins with its `samples_given`, zeros follow. A line whose mel or sound
            is not finite is NaN from end to end.
        """
        seen, lengths, broken = _gathered(mel, rows, slots)
        f0, turns = continue_pitch(self.decoder.pitch(seen, lengths), lengths, rows, slots)
        source = harmonic_source(f0, turns, lengths, self._source, rows, slots)
        spectra = analyse(source, lengths, self._stft, self._dtype)
        vocoded = synthesise(self.decoder(seen, spectra, lengths), lengths, self._stft, broken)  # (B, 480 F)
        out = vocoded.new_empty(rows.batch, frames_to_samples(rows.frames + OVERLAP_FRAMES))
        mel_bins = mel.shape[-1]
        _join[triton.cdiv(out.shape[1], _SAMPLES_BLOCK), rows.batch](
            vocoded, self._fade, seen, f0, turns, lengths, broken, rows.control,
            slots.mel, slots.f0, slots.turns, slots.at_start, slots.speech, out,
            rows.control.stride(0), seen.shape[1], out.shape[1],
            M=mel_bins, BLOCK=_SAMPLES_BLOCK, BLOCK_M=triton.next_power_of_2(mel_bins), num_warps=4,
        )  # fmt: skip
        return out


def _gathered(mel: Tensor, rows: Rows, slots: Slots) -> tuple[Tensor, Tensor, Tensor]:
    """Held frames and new ones, (B, F, M), F = T + 16; their number (B,); and 1 where a new one is not finite (B,)."""
    frames, mel_bins = rows.frames + HELD_FRAMES, mel.shape[-1]
    seen = mel.new_empty(rows.batch, frames, mel_bins)
    lengths, broken = (torch.empty(rows.batch, dtype=torch.int32, device=mel.device) for _ in range(2))
    _gather[(rows.batch,)](
        mel, slots.mel, rows.control, seen, lengths, broken, rows.control.stride(0), rows.frames, frames,
        M=mel_bins, BLOCK_F=_FRAMES_BLOCK, BLOCK_M=triton.next_power_of_2(mel_bins), num_warps=4,
    )  # fmt: skip
    return seen, lengths, broken
