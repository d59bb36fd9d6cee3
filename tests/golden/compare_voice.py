"""A folder of recorded voice features against ours: mels, filterbank, filters, padding, resampling, lengths."""

from __future__ import annotations

import math
from pathlib import Path

import soundfile
import torch
from comparison import Comparison, Recorded
from torch import Tensor

from sidecar.audio.resample import resample
from sidecar.timebase import tokens_to_frames
from sidecar.voices.features import fit
from sidecar.voices.mel import flow_mel, slaney_filters
from sidecar.voices.speaker import centred, filterbank, kaldi_filters
from sidecar.voices.tokenizer import log_mel

LOG_MEL = 1e-3
FILTERBANK = 2e-3
FILTERS = 1e-4
RESAMPLED = 1e-5

WAV_24K, WAV_16K = "prompt_3s_24k.wav", "prompt_3s_16k.wav"


def recognises(folder: Path) -> bool:
    return (folder / "features.safetensors").exists() and (folder / WAV_24K).exists()


@torch.inference_mode()
def compare(comparison: Comparison) -> None:
    features = comparison.load("features.safetensors")
    _prompt(comparison, features)
    _quiet(comparison, features)
    _filters(comparison, features)
    _resampling(comparison, features)
    for row in comparison.json("lengths.json"):
        comparison.same(f"lengths.json: {row['samples_48k']} samples", _lengths(row["samples_48k"]), row)


def _prompt(comparison: Comparison, features: Recorded) -> None:
    at_24k, at_16k = _wav(comparison, WAV_24K), _wav(comparison, WAV_16K)
    comparison.close("mel24k", flow_mel(at_24k), features["mel24k"], LOG_MEL)
    comparison.close("logmel128", log_mel(at_16k), features["logmel128"], LOG_MEL)
    comparison.close("fbank", filterbank(at_16k), features["fbank"], FILTERBANK)
    comparison.close(
        "fbank_mean_subtracted", centred(filterbank(at_16k)), features["fbank_mean_subtracted"], FILTERBANK
    )
    mel = features["pad.mel"]
    whole = mel.shape[0] - 2  # the last two see where the recording was cut, which the folder does not tell
    comparison.close("pad.mel, before the cut", flow_mel(at_24k)[:whole], mel[:whole], LOG_MEL)
    padded = features["pad.padded"]
    comparison.close("pad.padded", fit(mel, padded.shape[0]), padded, 0.0)


def _quiet(comparison: Comparison, features: Recorded) -> None:
    at_16k, at_24k = features["quiet.wave16k"], features["quiet.wave24k"]
    comparison.close("quiet.logmel128", log_mel(at_16k), features["quiet.logmel128"], LOG_MEL)
    comparison.close(
        "quiet.fbank_mean_subtracted", centred(filterbank(at_16k)), features["quiet.fbank_mean_subtracted"], FILTERBANK
    )
    comparison.close("quiet.mel24k", flow_mel(at_24k), features["quiet.mel24k"], LOG_MEL)


def _filters(comparison: Comparison, features: Recorded) -> None:
    comparison.close("filters.mel24k", slaney_filters(80, 1920, 24_000), features["filters.mel24k"], FILTERS)
    comparison.close("filters.logmel128", slaney_filters(128, 400, 16_000), features["filters.logmel128"], FILTERS)
    comparison.close("filters.fbank", kaldi_filters(), features["filters.fbank"], FILTERS)


def _resampling(comparison: Comparison, features: Recorded) -> None:
    for wave, from_hz, prefix in (("wave48k", 48_000, ""), ("wave44k", 44_100, "44k_")):
        for to_hz in (24_000, 16_000):
            name = f"resample.{prefix}to{to_hz // 1000}k"
            ours = resample(features[f"resample.{wave}"].numpy(), from_hz, to_hz)
            comparison.close(name, torch.from_numpy(ours), features[name], RESAMPLED)


def _lengths(samples_48k: int) -> dict[str, int]:
    """Every length that follows, from the real functions on silence."""
    silence = torch.zeros(samples_48k)
    at_16k = torch.from_numpy(resample(silence.numpy(), 48_000, 16_000))
    at_24k = torch.from_numpy(resample(silence.numpy(), 48_000, 24_000))
    log_mel_frames, mel = log_mel(at_16k).shape[-1], flow_mel(at_24k)
    tokens = math.ceil(math.ceil(log_mel_frames / 2) / 2)
    padded = fit(mel, tokens_to_frames(tokens)).shape[0]
    return {
        "samples_48k": samples_48k,
        "samples_16k": len(at_16k),
        "samples_24k": len(at_24k),
        "logmel_frames_100hz": log_mel_frames,
        "speech_tokens": tokens,
        "mel_frames_50hz": mel.shape[0],
        "padded_mel_frames": padded,
        "repeated_frames": padded - mel.shape[0],
        "fbank_frames": filterbank(at_16k).shape[0],
    }


def _wav(comparison: Comparison, file: str) -> Tensor:
    samples, _ = soundfile.read(comparison.folder / file, dtype="float32")
    return torch.from_numpy(samples)
