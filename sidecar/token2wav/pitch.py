"""The pitch of a voice, read off its mel."""

from __future__ import annotations

from torch import Tensor, nn

LAYERS = 5
#: How many frames to either side a pitch depends on: one a layer.
REACH_FRAMES = LAYERS


class PitchPredictor(nn.Module):
    """mel (B, M, T) -> f0 (B, T) in Hz. Each frame sees 5 to either side."""

    def __init__(self, mel_bins: int, channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width in (mel_bins, *[channels] * (LAYERS - 1)):
            layers += [nn.Conv1d(width, channels, 3, padding=1), nn.ELU()]
        self.condnet = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, 1)

    def forward(self, mel: Tensor) -> Tensor:
        f0: Tensor = self.classifier(self.condnet(mel).transpose(1, 2))  # (B, T, 1)
        return f0.squeeze(-1).abs()
