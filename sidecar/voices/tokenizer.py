"""Sound to speech tokens: log-mel, and the supervised speech tokenizer of CosyVoice 2 (arXiv 2412.10117) in ONNX."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from sidecar.timebase import INPUT_RATE_HZ
from sidecar.voices.mel import slaney_filters
from sidecar.voices.onnx import OnnxModel

MEL_BINS = 128
N_FFT = 400
HOP_SAMPLES = 160
#: The tokenizer's window: 30 s. A voice's recording has to fit in one.
MAX_FRAMES = 3000


class SpeechTokenizer:
    """16 kHz sound -> token ids, 25 a second."""

    def __init__(self, path: Path) -> None:
        self._model = OnnxModel(path, inputs=2)

    def tokens(self, samples: Tensor) -> Tensor:
        """(S,) -> (N,) int64, N = ceil(ceil(frames / 2) / 2) with a frame every 160 samples, at most 3000 of them."""
        mel = log_mel(samples)
        frames = mel.shape[-1]
        assert frames <= MAX_FRAMES, f"{frames} mel frames; the tokenizer takes {MAX_FRAMES} in one call"
        ids = self._model.run(mel[None].numpy(), torch.tensor([frames], dtype=torch.int32).numpy())
        return torch.from_numpy(ids).flatten().long()


def log_mel(samples: Tensor) -> Tensor:
    """Sound (S,) at 16 kHz -> (128, S // 160): Whisper's log-mel (arXiv 2212.04356) over the whole recording, unpadded.

    Not the one of the language model's audio input, which pads and cuts otherwise.
    """
    spectrum = torch.stft(samples, N_FFT, HOP_SAMPLES, window=torch.hann_window(N_FFT), return_complex=True)
    power = spectrum[:, :-1].abs().square()  # (201, T)
    mel = (slaney_filters(MEL_BINS, N_FFT, INPUT_RATE_HZ) @ power).clamp(min=1e-10).log10()
    return (torch.maximum(mel, mel.max() - 8) + 4) / 4
