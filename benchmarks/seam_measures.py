"""What can be measured of the places where two chunks of a stream meet, and the sounds they are measured on."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sidecar.timebase import frames_to_samples, tokens_to_frames
from sidecar.token2wav.overlap import OVERLAP_FRAMES
from sidecar.token2wav.phase import HARMONICS
from sidecar.token2wav.seams import SeamPolicy
from sidecar.token2wav.vocoder import Vocoder

OVERLAP = frames_to_samples(OVERLAP_FRAMES)


class PitchInMel(nn.Module):
    """In place of a pitch predictor, whose random weights would give any pitch: the first bin is the pitch's log."""

    def forward(self, mel: Tensor) -> Tensor:
        return mel[:, 0].exp()


@dataclass(frozen=True)
class Seams:
    """Of one streamed sound, all against whole vocoding of the same mel with the same noise.

    That tells what a seam does from what the voice does: a glide is not equally loud or steep all along.
    """

    level_db: float  # how much a border's level differs from that of the middle of a chunk, at worst
    border_step: (
        float  # the largest step from a sample to the next in a border's 160 ms over whole vocoding's, at worst
    )
    inner_step: float  # the same between the borders
    snr_db: float


def with_pitch_in_mel(vocoder: Vocoder) -> Vocoder:
    """A copy that speaks the mels of `held_vowel` and `glide` at their pitch."""
    copied = copy.deepcopy(vocoder)
    copied.add_module("f0_predictor", PitchInMel())
    return copied


def held_vowel(frames: int, *, f0_hz: float = 150.0, mel_bins: int = 80) -> Tensor:
    """(1, M, T): the same frame again and again."""
    return glide(frames, f0_hz, f0_hz, mel_bins=mel_bins)


def glide(frames: int, first_hz: float = 120.0, last_hz: float = 240.0, *, mel_bins: int = 80) -> Tensor:
    """(1, M, T): one vowel whose pitch rises by the same interval with every frame."""
    formants = 0.5 * torch.randn(mel_bins, generator=torch.Generator().manual_seed(7))
    mel = formants[:, None].repeat(1, frames)
    mel[0] = torch.linspace(torch.tensor(first_hz).log().item(), torch.tensor(last_hz).log().item(), frames)
    return mel[None]


def moving_mel(frames: int, *, mel_bins: int = 80) -> Tensor:
    """(1, M, T): noise that changes as slowly as speech does, over some 5 frames."""
    drawn = torch.randn(1, mel_bins, frames + 8, generator=torch.Generator().manual_seed(8))
    window = torch.hann_window(11)[1:-1]
    smooth = nn.functional.conv1d(drawn.transpose(0, 1), (window / window.square().sum().sqrt())[None, None])
    return smooth.transpose(0, 1)


def noise_of(mel: Tensor) -> Tensor:
    """(B, 480 T, 9), counted by frame like a stream's: any call takes its frames' part."""
    samples = frames_to_samples(mel.shape[-1])
    drawn = torch.randn(len(mel), samples, HARMONICS, generator=torch.Generator().manual_seed(9))
    return drawn.to(mel.device)


def chunk_frames(frames: int, *plan_tokens: int) -> list[int]:
    """Frames of each chunk: the plan's, the last of it repeated, until nothing is left."""
    chunks: list[int] = []
    while (left := frames - sum(chunks)) > 0:
        chunks.append(min(left, tokens_to_frames(plan_tokens[min(len(chunks), len(plan_tokens) - 1)])))
    return chunks


@torch.inference_mode()
def stream(policy: SeamPolicy, vocoder: Vocoder, mel: Tensor, noise: Tensor, chunks: Sequence[int]) -> list[Tensor]:
    """What each chunk gives out, (B, S) each."""
    state, done, given = policy.initial_state(vocoder, len(mel)), 0, []
    for index, frames in enumerate(chunks):
        heard = noise[:, frames_to_samples(done - state.held_frames) : frames_to_samples(done + frames)]
        new, last = mel[..., done : done + frames], index == len(chunks) - 1
        samples, state = policy.step(vocoder, new, state, heard, last=last)
        given.append(samples)
        done += frames
    return given


@torch.inference_mode()
def measure(policy: SeamPolicy, vocoder: Vocoder, mel: Tensor, noise: Tensor, chunks: Sequence[int]) -> Seams:
    """One stream (mel of one row), whose chunks all have 16 frames or more."""
    streamed = torch.cat(stream(policy, vocoder, mel, noise, chunks), dim=-1)[0].double()
    whole = policy.whole(vocoder, mel, noise)[0].double()
    seams, inner = seam_parts(chunks), inner_parts(chunks)
    levels = [10 * _power_ratio(streamed, whole, part).log10().item() for part in seams]
    middles = [10 * _power_ratio(streamed, whole, middle(part)).log10().item() for part in inner[1:]]
    return Seams(
        level_db=max(abs(level - beside) for level, beside in zip(levels, middles, strict=True)),
        border_step=max(_step_ratio(streamed, whole, part) for part in seams),
        inner_step=max(_step_ratio(streamed, whole, part) for part in inner),
        snr_db=signal_to_noise_db(streamed, whole),
    )


def seam_parts(chunks: Sequence[int]) -> list[slice]:
    """The samples vocoded twice, from the first of a chunk's sound on: 160 ms for each border."""
    ends = torch.tensor(chunks).cumsum(0)[:-1].tolist()
    return [slice(frames_to_samples(end) - OVERLAP, frames_to_samples(end)) for end in ends]


def inner_parts(chunks: Sequence[int]) -> list[slice]:
    """What lies between those, before the first and after the last."""
    seams = seam_parts(chunks)
    starts, stops = (
        [0, *(part.stop for part in seams)],
        [*(part.start for part in seams), frames_to_samples(sum(chunks))],
    )
    return [slice(start, stop) for start, stop in zip(starts, stops, strict=True)]


def middle(part: slice) -> slice:
    """160 ms of it."""
    centre = (part.start + part.stop) // 2
    return slice(centre - OVERLAP // 2, centre + OVERLAP // 2)


def signal_to_noise_db(streamed: Tensor, whole: Tensor) -> float:
    return 10 * (whole.square().sum() / (streamed - whole).square().sum()).log10().item()


def _power_ratio(streamed: Tensor, whole: Tensor, part: slice) -> Tensor:
    return streamed[part].square().mean() / whole[part].square().mean()


def _step_ratio(streamed: Tensor, whole: Tensor, part: slice) -> float:
    """Steps into the part and out of it count."""
    steps = slice(max(part.start - 1, 0), part.stop + 1)
    return (streamed[steps].diff().abs().max() / whole[steps].diff().abs().max()).item()
