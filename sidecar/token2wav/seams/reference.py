"""Chunks joined as the model's authors join them; recordings of their code need it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sidecar.timebase import frames_to_samples
from sidecar.token2wav.overlap import OVERLAP_FRAMES, cross_fade, reference_fade
from sidecar.token2wav.phase import reference_phase
from sidecar.token2wav.seams.policy import VocoderState, check_noise, newest, withhold
from sidecar.token2wav.vocoder import Vocoder


@dataclass(frozen=True)
class ReferenceState(VocoderState):
    """c = min(8, frames so far). While it is below 8 the next call starts over with those frames in front."""

    source: Tensor  # (B, 1, 480 c), the held frames' harmonic source


@dataclass(frozen=True)
class ReferenceSeams:
    """The last 8 frames are vocoded again, without what came before them, and the whole 160 ms fade over.

    The harmonics start from phase 0 in every call; over the held frames the source of the call before is put in, and
    where it ends the phase jumps. The halves of the fade add up to 1.08.
    """

    def whole(self, vocoder: Vocoder, mel: Tensor, noise: Tensor) -> Tensor:
        return vocoder.decode(mel, _source(vocoder, mel, noise))

    def initial_state(self, vocoder: Vocoder, batch: int) -> ReferenceState:
        empty = vocoder.conv_pre.weight.new_empty
        mel = empty(batch, vocoder.config.mel_bins, 0)
        return ReferenceState(mel, empty(batch, 0), (0,) * batch, source=empty(batch, 1, 0))

    def step(
        self, vocoder: Vocoder, mel: Tensor, state: VocoderState, noise: Tensor, *, last: bool
    ) -> tuple[Tensor, ReferenceState]:
        assert isinstance(state, ReferenceState), "a stream goes on with the seams it began with"
        check_noise(noise, state.held_frames + mel.shape[-1])
        if mel.shape[-1] == 0:
            return (state.speech if last else state.speech[:, :0]), state
        seen = torch.cat([state.mel, mel], dim=-1)  # (B, M, c + T)
        source = _source(vocoder, seen, noise)  # (B, 1, 480 (c + T))
        joins = state.held_frames == OVERLAP_FRAMES
        if joins:
            source = torch.cat([state.source, source[..., state.source.shape[-1] :]], dim=-1)
        speech = vocoder.decode(seen, source)  # (B, 480 (c + T))
        if joins:
            speech = cross_fade(speech, state.speech, reference_fade(speech.device))
        given, withheld = withhold(speech, last=last)
        held_frames = min(OVERLAP_FRAMES, seen.shape[-1])
        return given, ReferenceState(
            mel=newest(seen, held_frames),
            speech=withheld,
            frames_done=tuple(frames + mel.shape[-1] for frames in state.frames_done),
            source=newest(source, frames_to_samples(held_frames)),
        )


REFERENCE = ReferenceSeams()


def _source(vocoder: Vocoder, mel: Tensor, noise: Tensor) -> Tensor:
    f0 = vocoder.f0(mel)
    return vocoder.source(f0, reference_phase(f0), noise)
