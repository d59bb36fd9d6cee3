"""HiFT, the vocoder of CosyVoice 2 (arXiv 2412.10117): mel -> pitch -> harmonic source -> inverse STFT -> samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sidecar.errors import CheckpointError
from sidecar.token2wav.phase import continued_phase
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


class Vocoder(nn.Module):
    """mel (B, M, T) -> samples (B, 480 T) in [-0.99, 0.99], in float32.

    It is not causal: a frame sounds as the 14 to either side of it let it. How a stream is vocoded all the same, chunk
    by chunk, is what `seams` say.
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

    def forward(self, mel: Tensor, noise: Tensor) -> Tensor:
        """A whole utterance in one call: mel (B, M, T), noise (B, 480 T, 9) standard normal -> samples (B, 480 T)."""
        f0 = self.f0(mel)
        before = torch.zeros(len(mel), dtype=torch.float64, device=mel.device)
        phase = continued_phase(f0, before, at_start=torch.ones_like(before, dtype=torch.bool))
        return self.decode(mel, self.source(f0, phase, noise))

    def f0(self, mel: Tensor) -> Tensor:
        """mel (B, M, T) -> pitch (B, T) in Hz."""
        pitch: Tensor = self.f0_predictor(mel)
        return pitch

    def source(self, f0: Tensor, phase: Tensor, noise: Tensor) -> Tensor:
        """Pitch (B, T), its harmonics' phase and noise, both (B, 480 T, 9) -> harmonic source (B, 1, 480 T)."""
        source: Tensor = self.m_source(f0, phase, noise)
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
