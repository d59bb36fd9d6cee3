"""HiFT, the vocoder of CosyVoice 2 (arXiv 2412.10117): mel -> pitch -> harmonic source -> inverse STFT -> samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sidecar.errors import CheckpointError
from sidecar.timebase import frames_to_samples
from sidecar.token2wav.overlap import OVERLAP_FRAMES, cross_fade, reference_fade
from sidecar.token2wav.pitch import PitchPredictor
from sidecar.token2wav.resblock import ResBlock
from sidecar.token2wav.source import HarmonicSource
from sidecar.token2wav.stft import BINS, ShortTimeFourier

UPSAMPLE_RATES = (8, 5, 3)
UPSAMPLE_KERNELS = (16, 11, 7)
#: What is still to be upsampled after each level: the source's spectrum comes at the rate of the last one.
SOURCE_DOWN_RATES = (15, 3, 1)
RESBLOCK_KERNELS = (3, 7, 11)
SOURCE_RESBLOCK_KERNELS = (7, 7, 11)
LEAKY_SLOPE = 0.1
#: The activation before the last convolution has another slope than the rest.
LAST_LEAKY_SLOPE = 0.01
MAX_MAGNITUDE = 100.0
SAMPLE_LIMIT = 0.99


@dataclass(frozen=True)
class HiftConfig:
    """The sizes that differ between checkpoints; everything else is the architecture."""

    mel_bins: int = 80
    base_channels: int = 512
    f0_channels: int = 512

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> HiftConfig:
        """Sizes read off folded weights: a checkpoint carries no vocoder configuration.

        Raises:
            CheckpointError: a tensor that tells them is missing or no convolution's.
        """
        for name, dimensions in (("conv_pre.weight", 3), ("f0_predictor.classifier.weight", 2)):
            if name not in tensors or tensors[name].dim() != dimensions:
                raise CheckpointError(f"this is no HiFT vocoder: {name} with {dimensions} dimensions is not in it")
        base_channels, mel_bins, _ = tensors["conv_pre.weight"].shape
        return cls(mel_bins, base_channels, tensors["f0_predictor.classifier.weight"].shape[1])


@dataclass(frozen=True)
class VocoderState:
    """What the next call needs of the ones before; c = min(8, frames so far), the same for all streams of a batch.

    While c is below 8 nothing has been handed out, and the next call starts over with those frames in front.
    """

    mel: Tensor  # (B, M, c), the newest frames
    source: Tensor  # (B, 1, 480 c), their harmonic source
    speech: Tensor  # (B, 480 c), their samples, held back
    frames_done: tuple[int, ...]  # mel frames taken so far, for each stream

    @property
    def held_frames(self) -> int:
        """c: how many frames the next call vocodes again, in front of its own."""
        return self.mel.shape[-1]

    @classmethod
    def stack(cls, states: Sequence[VocoderState]) -> VocoderState:
        """Streams side by side; all must hold the same number of frames."""
        return cls(
            torch.cat([state.mel for state in states]),
            torch.cat([state.source for state in states]),
            torch.cat([state.speech for state in states]),
            tuple(frames for state in states for frames in state.frames_done),
        )

    def split(self) -> list[VocoderState]:
        """One state for each stream, with memory of its own."""
        return [
            VocoderState(
                self.mel[row : row + 1].clone(),
                self.source[row : row + 1].clone(),
                self.speech[row : row + 1].clone(),
                (frames,),
            )
            for row, frames in enumerate(self.frames_done)
        ]


class Vocoder(nn.Module):
    """mel (B, M, T) -> samples (B, 480 T) in [-0.99, 0.99], whole or chunk by chunk, in float32.

    It is not causal: a frame is heard with the frames after it in view. Streamed, each call therefore vocodes the last
    8 frames of the one before again and fades over to the new sound (160 ms), as the model's authors do it; chunked
    output differs from whole output by that, and by the source's phase, which starts from 0 in every call.
    """

    def __init__(self, config: HiftConfig) -> None:
        super().__init__()
        widths = [config.base_channels >> level for level in range(len(UPSAMPLE_RATES) + 1)]
        self.config = config
        self.f0_predictor = PitchPredictor(config.mel_bins, config.f0_channels)
        self.m_source = HarmonicSource()
        self.stft = ShortTimeFourier()
        self.conv_pre = nn.Conv1d(config.mel_bins, widths[0], 7, padding=3)
        self.ups = nn.ModuleList(
            nn.ConvTranspose1d(before, after, kernel, stride=rate, padding=(kernel - rate) // 2)
            for before, after, rate, kernel in zip(widths, widths[1:], UPSAMPLE_RATES, UPSAMPLE_KERNELS, strict=False)
        )
        self.source_downs = nn.ModuleList(
            nn.Conv1d(2 * BINS, width, 2 * rate if rate > 1 else 1, stride=rate, padding=rate // 2)
            for width, rate in zip(widths[1:], SOURCE_DOWN_RATES, strict=True)
        )
        self.source_resblocks = nn.ModuleList(
            ResBlock(width, kernel) for width, kernel in zip(widths[1:], SOURCE_RESBLOCK_KERNELS, strict=True)
        )
        self.resblocks = nn.ModuleList(ResBlock(width, kernel) for width in widths[1:] for kernel in RESBLOCK_KERNELS)
        self.conv_post = nn.Conv1d(widths[-1], 2 * BINS, 7, padding=3)

    def initial_state(self, batch: int) -> VocoderState:
        """Before the first frame of `batch` streams."""
        empty = self.conv_pre.weight.new_empty
        return VocoderState(empty(batch, self.config.mel_bins, 0), empty(batch, 1, 0), empty(batch, 0), (0,) * batch)

    def forward(self, mel: Tensor, noise: Tensor) -> Tensor:
        """A whole utterance in one call: mel (B, M, T), noise (B, 480 T, 9) standard normal -> samples (B, 480 T)."""
        return self.decode(mel, self.source(self.f0(mel), noise))

    def step(self, mel: Tensor, state: VocoderState, noise: Tensor, *, last: bool) -> tuple[Tensor, VocoderState]:
        """The next chunk of a stream, of any length: with c frames held, 480 (c + T) samples less what is held now.

        Over a stream that is exactly 480 samples a frame, 3840 behind until `last` gives all. A chunk plan that starts
        with fewer than 8 frames holds everything back until it has more.

        Args:
            mel: (B, M, T), the new frames; none is allowed.
            noise: (B, 480 (c + T), 9), standard normal, for the held frames and the new ones.

        Returns:
            samples (B, S), and the state for the next chunk.
        """
        samples = frames_to_samples(state.held_frames + mel.shape[-1])
        assert noise.shape[1] == samples, f"noise is for {noise.shape[1]} samples, the call makes {samples}"
        if mel.shape[-1] == 0:
            return (state.speech if last else state.speech[:, :0]), state
        seen = torch.cat([state.mel, mel], dim=-1)  # (B, M, c + T)
        source = self.source(self.f0(seen), noise)  # (B, 1, 480 (c + T))
        joins = state.held_frames == OVERLAP_FRAMES
        if joins:
            source = torch.cat([state.source, source[..., state.source.shape[-1] :]], dim=-1)
        speech = self.decode(seen, source)  # (B, 480 (c + T))
        if joins:
            speech = cross_fade(speech, state.speech, reference_fade(speech.device))
        return _hand_out(seen, source, speech, state.frames_done, new_frames=mel.shape[-1], last=last)

    def f0(self, mel: Tensor) -> Tensor:
        """mel (B, M, T) -> pitch (B, T) in Hz."""
        pitch: Tensor = self.f0_predictor(mel)
        return pitch

    def source(self, f0: Tensor, noise: Tensor) -> Tensor:
        """Pitch (B, T) and noise (B, 480 T, 9) -> harmonic source (B, 1, 480 T)."""
        source: Tensor = self.m_source(f0, noise)
        return source

    def decode(self, mel: Tensor, source: Tensor) -> Tensor:
        """The network alone: mel (B, M, T) and source (B, 1, 480 T) -> samples (B, 480 T)."""
        spectrum = self.stft.analyse(source)  # (B, 18, 120 T + 1)
        x = self.conv_pre(mel)
        for level, up in enumerate(self.ups):
            x = up(F.leaky_relu(x, LEAKY_SLOPE))
            if level == len(self.ups) - 1:
                x = F.pad(x, (1, 0), mode="reflect")  # one more, to meet the spectrum's length
            x = x + self.source_resblocks[level](self.source_downs[level](spectrum))
            blocks = self.resblocks[level * len(RESBLOCK_KERNELS) : (level + 1) * len(RESBLOCK_KERNELS)]
            x = torch.stack([block(x) for block in blocks]).mean(dim=0)  # (B, C, 8 T), 40 T, 120 T + 1
        log_magnitude, phase = self.conv_post(F.leaky_relu(x, LAST_LEAKY_SLOPE)).chunk(2, dim=1)
        samples = self.stft.synthesise(log_magnitude.exp().clamp(max=MAX_MAGNITUDE), torch.sin(phase))
        return samples.clamp(-SAMPLE_LIMIT, SAMPLE_LIMIT)


def _hand_out(
    seen: Tensor, source: Tensor, speech: Tensor, frames_done: tuple[int, ...], *, new_frames: int, last: bool
) -> tuple[Tensor, VocoderState]:
    """Samples to give now, and the state that keeps the newest 8 frames; clones, so no chunk outlives its call."""
    held_frames = min(OVERLAP_FRAMES, seen.shape[-1])
    held_samples = frames_to_samples(held_frames)
    state = VocoderState(
        seen[..., -held_frames:].clone(),
        source[..., -held_samples:].clone(),
        speech[..., -held_samples:].clone(),
        tuple(frames + new_frames for frames in frames_done),
    )
    return (speech if last else speech[:, :-held_samples]), state
