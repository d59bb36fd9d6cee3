"""A voice's recording -> what token2wav needs of it: speech tokens, mel, speaker embedding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sidecar.audio.resample import resample
from sidecar.errors import UnusableAudio
from sidecar.timebase import INPUT_RATE_HZ, SAMPLE_RATE_HZ, tokens_to_frames
from sidecar.token2wav.state import VoiceFeatures
from sidecar.voices.mel import flow_mel
from sidecar.voices.speaker import SpeakerEncoder
from sidecar.voices.tokenizer import SpeechTokenizer

MIN_SECONDS, MAX_SECONDS = 1.0, 30.0


class VoiceExtractor:
    """The two ONNX networks of a checkpoint, and the mel; a fraction of a second of CPU for each voice."""

    def __init__(self, tokenizer: SpeechTokenizer, speaker: SpeakerEncoder) -> None:
        self._tokenizer = tokenizer
        self._speaker = speaker

    @classmethod
    def from_folder(cls, token2wav_dir: Path) -> VoiceExtractor:
        """From MODEL/token2wav.

        Raises:
            CheckpointError: an ONNX file is missing or broken.
        """
        return cls(
            SpeechTokenizer(token2wav_dir / "speech_tokenizer_v2_25hz.onnx"),
            SpeakerEncoder(token2wav_dir / "campplus.onnx"),
        )

    @torch.inference_mode()
    def features(self, samples: NDArray[np.float32], sample_rate_hz: int) -> VoiceFeatures:
        """Samples (S,) or (channels, S), at any rate. Each rate is made from the original, not one from the other.

        Tokens and embedding hear the first channel, the mel the mean of all, as the model was prompted in training.

        Raises:
            UnusableAudio: shorter than 1 s, longer than 30 s, or not finite.
        """
        channels = np.atleast_2d(samples)
        _refuse_unusable(channels, sample_rate_hz)
        at_16k = torch.from_numpy(resample(channels[0], sample_rate_hz, INPUT_RATE_HZ))
        at_24k = torch.from_numpy(resample(channels.mean(axis=0), sample_rate_hz, SAMPLE_RATE_HZ))
        tokens = self._tokenizer.tokens(at_16k)  # (Np,)
        mel = fit(flow_mel(at_24k), tokens_to_frames(len(tokens)))  # (2 Np, 80)
        return VoiceFeatures(prompt_tokens=tokens, prompt_mel=mel, speaker=self._speaker.embedding(at_16k))


def fit(mel: Tensor, frames: int) -> Tensor:
    """Mel (T, 80) -> (frames, 80): tokens round up and frames down, so the last frame is repeated up to twice."""
    missing = max(frames - mel.shape[0], 0)
    return torch.cat([mel[:frames], mel[-1:].expand(missing, -1)])


def _refuse_unusable(channels: NDArray[np.float32], sample_rate_hz: int) -> None:
    seconds = channels.shape[-1] / sample_rate_hz
    if not MIN_SECONDS <= seconds <= MAX_SECONDS:
        raise UnusableAudio(
            f"the voice's recording lasts {seconds:.2f} s; "
            f"{MIN_SECONDS:g} to {MAX_SECONDS:g} s are taken, and 5 to 10 s of clear speech are best"
        )
    if not np.isfinite(channels).all():
        raise UnusableAudio("the voice's recording holds samples that are not finite; export it again")
