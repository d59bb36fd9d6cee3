"""The vocoder's network in few kernels, lines of different lengths together, against the network of each line alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch
from golden_folders import DATA
from torch import Tensor

pytest.importorskip("triton", reason="needs Triton, which is there on Linux alone")

from sidecar.token2wav.gpu.decoder import FusedDecoder
from sidecar.token2wav.synthetic_weights import vocoder_tensors as random_tensors
from sidecar.token2wav.vocoder import HiftConfig, Vocoder
from sidecar.token2wav.weights import load_strict, load_vocoder, vocoder_tensors

FRAMES = 4
#: All of the room, less, a line that only fills the batch up, and the least.
LENGTHS = (4, 2, 0, 1)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@cache
def recorded() -> Vocoder:
    return load_vocoder(DATA / "hift" / "hift.safetensors")


@cache
def drawn() -> Vocoder:
    """Channels that are no powers of two, so that no block of a kernel fits."""
    config = HiftConfig(mel_bins=20, base_channels=40, f0_channels=24)
    vocoder = Vocoder(config)
    load_strict(vocoder, vocoder_tensors(random_tensors(config, seed=3)))
    return vocoder.eval().requires_grad_(False)


both_weights = pytest.mark.parametrize("vocoder_of", [recorded, drawn], ids=["recorded", "drawn"])


def inputs_of(vocoder: Vocoder, lengths: tuple[int, ...], seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """mel (B, F, M), spectrum (B, 120 F + 1, 18), lengths (B,); beyond a line's own there is nothing but NaN."""
    random = torch.Generator().manual_seed(seed)
    mel = torch.randn(len(lengths), FRAMES, vocoder.config.mel_bins, generator=random)
    spectrum = torch.randn(len(lengths), 120 * FRAMES + 1, 18, generator=random)
    for line, length in enumerate(lengths):
        mel[line, length:] = torch.nan
        spectrum[line, 120 * length + 1 if length else 0 :] = torch.nan
    return mel, spectrum, torch.tensor(lengths)


@torch.inference_mode()
def alone(vocoder: Vocoder, mel: Tensor, spectrum: Tensor) -> Tensor:
    """(T, M) and (120 T + 1, 18) -> what the vocoder itself hands to its synthesis, (120 T + 1, 18)."""
    caught: list[Tensor] = []
    hook = vocoder.conv_post.register_forward_hook(lambda module, given, output: caught.append(output))
    analyse = vocoder.stft.analyse
    vocoder.stft.analyse = lambda source: spectrum.T[None]  # type: ignore[method-assign]
    try:
        vocoder.decode(mel.T[None], torch.empty(0))
    finally:
        vocoder.stft.analyse = analyse  # type: ignore[method-assign]
        hook.remove()
    return caught[0][0].T


@torch.inference_mode()
def together(vocoder: Vocoder, call: Callable[[FusedDecoder], Tensor]) -> Tensor:
    return call(FusedDecoder(vocoder.to(DEVICE), torch.float32)).cpu()


@both_weights
def test_every_line_of_a_batch_is_decoded_as_if_it_were_alone(vocoder_of: Callable[[], Vocoder]) -> None:
    vocoder = vocoder_of()
    mel, spectrum, lengths = inputs_of(vocoder, LENGTHS)
    decoded = together(vocoder, lambda fused: fused(mel.to(DEVICE), spectrum.to(DEVICE), lengths.to(DEVICE)))
    vocoder.to("cpu")
    assert decoded.shape == spectrum.shape and decoded.dtype == torch.float32
    for line, length in enumerate(LENGTHS):
        if length:
            rows = 120 * length + 1
            torch.testing.assert_close(
                decoded[line, :rows], alone(vocoder, mel[line, :length], spectrum[line, :rows]), atol=1e-4, rtol=1e-4
            )


@both_weights
def test_every_line_of_a_batch_has_the_pitch_it_has_alone(vocoder_of: Callable[[], Vocoder]) -> None:
    vocoder = vocoder_of()
    mel, _, lengths = inputs_of(vocoder, LENGTHS, seed=1)
    pitch = together(vocoder, lambda fused: fused.pitch(mel.to(DEVICE), lengths.to(DEVICE)))
    vocoder.to("cpu")
    assert pitch.shape == mel.shape[:2]
    for line, length in enumerate(LENGTHS):
        if length:
            expected = vocoder.f0(mel[line : line + 1, :length].mT)[0]
            torch.testing.assert_close(pitch[line, :length], expected, atol=1e-4, rtol=1e-5)
