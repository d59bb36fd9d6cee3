"""Chunks joined so that a stream sounds as if it had been vocoded whole."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sidecar.timebase import frames_to_samples
from sidecar.token2wav.overlap import OVERLAP_FRAMES, OVERLAP_SAMPLES, complementary_fade, cross_fade
from sidecar.token2wav.phase import continued_phase, summed_turns
from sidecar.token2wav.pitch import REACH_FRAMES
from sidecar.token2wav.seams.policy import VocoderState, check_noise, newest, withhold
from sidecar.token2wav.vocoder import Vocoder

#: Frames in front of the withheld ones that are vocoded again. The network sees 14 frames to either side, but mostly
#: the nearest. Streamed against whole, random weights of the real sizes, 1 s chunks (benchmarks/seams.py --sweep):
#: 35.3 dB with 2 frames, 49.2 with 4, 51.3 with 6, 51.4 with 8, no more with 12. With 8 what is held is full after a
#: first chunk of 8 tokens, so that all later chunks have one shape; a 1 s chunk takes 10 % more vocoding.
CONTEXT_FRAMES = 8

#: 5 ms. With the context in view the new sound is right from the first withheld sample on, and the old one less right
#: the longer it is trusted: 52.2 dB without a fade, 51.4 with 5 ms, 48.8 with 20, 35.4 with 80, 19.3 with all 160 ms.
#: Without a fade, what difference there is would be one step.
FADE_SAMPLES = 120


@dataclass(frozen=True)
class ContinuousState(VocoderState):
    """c = min(8 + context, frames so far)."""

    f0: Tensor  # (B, max(0, c - 5)), the pitch of the held frames that no later frame changes
    turns: Tensor  # (B,) float64, of the fundamental at the middle of the frame before the held ones
    at_start: Tensor  # (B,) whether the first frame held is the stream's first; on the device, where it is read


@dataclass(frozen=True)
class ContinuousSeams:
    """The withheld frames are vocoded again with those before them in view, and the new sound soon taken.

    Pitch, phase and noise of a frame are the same in every call that sees it, so what differs from whole vocoding is
    only how the end of a chunk sounds without its future, and that is what is withheld. Past the 8 withheld frames the
    network sees a little further: that is the difference that stays.
    """

    context_frames: int = CONTEXT_FRAMES
    fade_samples: int = FADE_SAMPLES

    def __post_init__(self) -> None:
        least = 2 * REACH_FRAMES - OVERLAP_FRAMES
        if self.context_frames < least:
            raise ValueError(
                f"context_frames ({self.context_frames}) is below {least}; raise it, or pitches that are not final "
                "yet would be read without the frames before them"
            )
        if not 0 <= self.fade_samples <= OVERLAP_SAMPLES:
            raise ValueError(f"fade_samples ({self.fade_samples}) is outside 0 to {OVERLAP_SAMPLES}, what is withheld")

    def whole(self, vocoder: Vocoder, mel: Tensor, noise: Tensor) -> Tensor:
        samples: Tensor = vocoder(mel, noise)
        return samples

    def initial_state(self, vocoder: Vocoder, batch: int) -> ContinuousState:
        empty = vocoder.conv_pre.weight.new_empty
        return ContinuousState(
            mel=empty(batch, vocoder.config.mel_bins, 0),
            speech=empty(batch, 0),
            frames_done=(0,) * batch,
            f0=empty(batch, 0),
            turns=torch.zeros_like(empty(batch), dtype=torch.float64),
            at_start=torch.ones_like(empty(batch), dtype=torch.bool),
        )

    def step(
        self, vocoder: Vocoder, mel: Tensor, state: VocoderState, noise: Tensor, *, last: bool
    ) -> tuple[Tensor, ContinuousState]:
        assert isinstance(state, ContinuousState), "a stream goes on with the seams it began with"
        check_noise(noise, state.held_frames + mel.shape[-1])
        if mel.shape[-1] == 0:
            return (state.speech if last else state.speech[:, :0]), state
        seen = torch.cat([state.mel, mel], dim=-1)  # (B, M, c + T)
        f0 = torch.cat([state.f0, vocoder.f0(seen)[:, state.f0.shape[1] :]], dim=1)  # (B, c + T)
        phase = continued_phase(f0, state.turns, state.at_start)
        vocoded = vocoder.decode(seen, vocoder.source(f0, phase, noise))  # (B, 480 (c + T))
        given, withheld = withhold(self._join(state, vocoded), last=last)
        return given, self._after(state, seen, f0, withheld)

    def _join(self, state: ContinuousState, vocoded: Tensor) -> Tensor:
        """What has not been given out yet: the vocoded samples without those of the context, after the fade."""
        if state.held_frames <= OVERLAP_FRAMES:
            return vocoded  # nothing has been given out, so there is nothing to fade from
        new = vocoded[:, frames_to_samples(state.held_frames - OVERLAP_FRAMES) :]
        return cross_fade(new, state.speech, complementary_fade(self.fade_samples, new.device))

    def _after(self, state: ContinuousState, seen: Tensor, f0: Tensor, withheld: Tensor) -> ContinuousState:
        frames = seen.shape[-1]
        held_frames = min(OVERLAP_FRAMES + self.context_frames, frames)
        dropped = frames - held_frames
        final = max(0, held_frames - REACH_FRAMES)
        return ContinuousState(
            mel=newest(seen, held_frames),
            speech=withheld,
            frames_done=tuple(done + frames - state.held_frames for done in state.frames_done),
            f0=f0[:, dropped : dropped + final].clone(),
            turns=summed_turns(f0[:, :dropped], state.turns)[:, -1].clone() if dropped else state.turns,
            at_start=torch.zeros_like(state.at_start) if dropped else state.at_start,
        )


CONTINUOUS = ContinuousSeams()
