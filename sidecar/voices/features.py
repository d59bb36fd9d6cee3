"""A voice's recording -> what token2wav needs of it: speech tokens, mel, speaker embedding."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sidecar.audio.resample import resample
from sidecar.errors import UnusableAudio
from sidecar.timebase import INPUT_RATE_HZ, SAMPLE_RATE_HZ, tokens_to_frames
from sidecar.token2wav.checkpoint_file import require_file
from sidecar.token2wav.state import VoiceFeatures
from sidecar.voices.mel import flow_mel
from sidecar.voices.speaker import SpeakerEncoder
from sidecar.voices.tokenizer import SpeechTokenizer

MIN_SECONDS, MAX_SECONDS = 1.0, 30.0
#: A first channel that swings less than this (-60 dB) is an empty track, not speech; the networks would make a voice
#: of its noise.
QUIETEST_SWING = 1e-3

_TOKENIZER, _SPEAKER = "speech_tokenizer_v2_25hz.onnx", "campplus.onnx"


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
            SpeechTokenizer(token2wav_dir / _TOKENIZER),
            SpeakerEncoder(token2wav_dir / _SPEAKER),
        )

    @torch.inference_mode()
    def features(self, samples: NDArray[np.float32], sample_rate_hz: int) -> VoiceFeatures:
        """Samples (S,) or (channels, S), at any rate. Each rate is made from the original, not one from the other.

        Tokens and embedding hear the first channel, the mel the mean of all, as the model was prompted in training.

        Raises:
            UnusableAudio: as `require_usable`.
        """
        channels = np.atleast_2d(samples)
        require_usable(channels, sample_rate_hz)
        at_16k = torch.from_numpy(resample(channels[0], sample_rate_hz, INPUT_RATE_HZ))
        at_24k = torch.from_numpy(resample(channels.mean(axis=0), sample_rate_hz, SAMPLE_RATE_HZ))
        tokens = self._tokenizer.tokens(at_16k)  # (Np,)
        mel = fit(flow_mel(at_24k), tokens_to_frames(len(tokens)))  # (2 Np, 80)
        return VoiceFeatures(prompt_tokens=tokens, prompt_mel=mel, speaker=self._speaker.embedding(at_16k))


def fit(mel: Tensor, frames: int) -> Tensor:
    """Mel (T, 80) -> (frames, 80): tokens round up and frames down, so the last frame is repeated up to twice."""
    missing = max(frames - mel.shape[0], 0)
    return torch.cat([mel[:frames], mel[-1:].expand(missing, -1)])


def networks_sha256(token2wav_dir: Path) -> str:
    """Of both networks' files: features of other networks are other features.

    Raises:
        CheckpointError: one of them is missing.
    """
    digest = hashlib.sha256()
    for name in (_TOKENIZER, _SPEAKER):
        with require_file(token2wav_dir / name).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def require_usable(channels: NDArray[np.float32], sample_rate_hz: int) -> None:
    """
    Args:
        channels: samples (channels, S).

    Raises:
        UnusableAudio: shorter than 1 s, longer than 30 s, not finite, or with nothing in the first channel.
    """
    seconds = channels.shape[-1] / sample_rate_hz
    if not MIN_SECONDS <= seconds <= MAX_SECONDS:
        raise UnusableAudio(
            f"the voice's recording lasts {seconds:.2f} s; "
            f"{MIN_SECONDS:g} to {MAX_SECONDS:g} s are taken, and 5 to 10 s of clear speech are best"
        )
    if not np.isfinite(channels).all():
        raise UnusableAudio("the voice's recording holds samples that are not finite; export it again")
    if np.ptp(channels[0]) < QUIETEST_SWING:
        raise UnusableAudio(
            "the voice's recording is silent"
            + (" in its first channel" if len(channels) > 1 else "")
            + "; send a mono recording of clear speech"
        )
