"""HiFT's network and its pitch predictor on lines of different lengths, in few kernels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sidecar.timebase import SAMPLES_PER_FRAME
from sidecar.token2wav.gpu.activations import Activation, join_and_part, leaky, leaky_mean, snakes
from sidecar.token2wav.gpu.convolution import Convolution
from sidecar.token2wav.gpu.ragged import Ragged
from sidecar.token2wav.resblock import DILATIONS, ResBlock
from sidecar.token2wav.stft import HOP_SAMPLES
from sidecar.token2wav.vocoder import LAST_LEAKY_SLOPE, LEAKY_SLOPE, RESBLOCK_KERNELS, Vocoder

#: Of the source's spectrum, which has one more.
_COLUMNS_PER_FRAME = SAMPLES_PER_FRAME // HOP_SAMPLES


class FusedDecoder:
    """Mel and the source's spectrum -> the spectrum of the sound, each line as if it were alone."""

    def __init__(self, vocoder: Vocoder, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._pitch = [
            Convolution.of([layer], torch.float32)
            for layer in vocoder.f0_predictor.condnet
            if isinstance(layer, nn.Conv1d)
        ]
        classifier = vocoder.f0_predictor.classifier
        self._classifier = classifier.weight.detach().float(), classifier.bias.detach().float()
        self._first = Convolution.of([vocoder.conv_pre], dtype)
        self._levels = [_Level.of(vocoder, level, dtype) for level in range(len(vocoder.ups))]
        self._last = Convolution.of([vocoder.conv_post], dtype)

    def pitch(self, mel: Tensor, lengths: Tensor) -> Tensor:
        """mel (B, F, M) float32, valid frames (B,) -> pitch (B, F) in Hz, float32 whatever the rest computes in."""
        x = Ragged(mel[None], lengths)
        for layer in self._pitch:
            x = layer.activated(x, Activation("elu"))
        return F.linear(x.values[0], *self._classifier).squeeze(-1).abs()

    def __call__(self, mel: Tensor, spectrum: Tensor, lengths: Tensor) -> Tensor:
        """mel (B, F, M), the source's spectrum (B, 120 F + 1, 18), valid frames (B,) -> (B, 120 F + 1, 18) float32.

        Of the output, the log magnitudes and angles before the synthesis, a line's first 120 lengths[b] + 1 rows are
        written (none where it has no frames); beyond may be anything. What the inputs have there is never read.
        """
        source = Ragged(spectrum.to(self._dtype)[None], lengths, rate=_COLUMNS_PER_FRAME, extra=1)
        x = self._first.activated(Ragged(mel.to(self._dtype)[None], lengths), leaky(LEAKY_SLOPE))
        for level in self._levels:
            x = level(x, source)
        return self._last.plain(x, dtype=torch.float32).values[0]


@dataclass(frozen=True)
class _Pair:
    """A residual pair of convolutions in each of G branches."""

    snake1: Activation
    dilated: Convolution
    snake2: Activation
    plain: Convolution


@dataclass(frozen=True)
class _Level:
    """One upsampling, the source at its rate, and the three residual blocks side by side."""

    up: Convolution
    source_down: Convolution
    source_pairs: list[_Pair]
    pairs: list[_Pair]
    slope: float  # of the leaky ReLU that follows

    @staticmethod
    def of(vocoder: Vocoder, level: int, dtype: torch.dtype) -> _Level:
        count = len(RESBLOCK_KERNELS)
        parts: Any = vocoder  # what lies in its lists is known to it alone
        return _Level(
            Convolution.transposed(parts.ups[level], dtype),
            Convolution.of([parts.source_downs[level]], dtype),
            _pairs([parts.source_resblocks[level]], dtype),
            _pairs(parts.resblocks[level * count : (level + 1) * count], dtype),
            LAST_LEAKY_SLOPE if level == len(vocoder.ups) - 1 else LEAKY_SLOPE,
        )

    def __call__(self, x: Ragged, spectrum: Ragged) -> Ragged:
        """(1, B, L, C) after its leaky ReLU -> the same of the next level."""
        source = _residual(*self.source_down.both(spectrum, self.source_pairs[0].snake1), self.source_pairs)
        joined, parted = join_and_part(self.up.plain(x), source, self.pairs[0].snake1)
        return leaky_mean(_residual(joined, parted, self.pairs), self.slope)


def _pairs(blocks: Sequence[ResBlock], dtype: torch.dtype) -> list[_Pair]:
    def layers(name: str, index: int) -> list[Any]:
        return [getattr(block, name)[index] for block in blocks]

    return [
        _Pair(
            snakes(layers("activations1", index)),
            Convolution.of(layers("convs1", index), dtype),
            snakes(layers("activations2", index)),
            Convolution.of(layers("convs2", index), dtype),
        )
        for index in range(len(DILATIONS))
    ]


def _residual(x: Ragged, activated: Ragged, pairs: Sequence[_Pair]) -> Ragged:
    """x of one group or of G, and its first Snake in G branches -> the residual blocks' output in G branches."""
    for pair, following in pairwise(pairs):
        inner = pair.dilated.activated(activated, pair.snake2)
        x, activated = pair.plain.both(inner, following.snake1, residual=x)
    inner = pairs[-1].dilated.activated(activated, pairs[-1].snake2)
    return pairs[-1].plain.plain(inner, residual=x)
