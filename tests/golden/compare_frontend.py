"""Sound to log-mel: mel filters, log-mel of every chunk, counts, resampling."""

from __future__ import annotations

from pathlib import Path

import torch
from comparison import Comparison, Recorded
from torch import Tensor

from sidecar.audio.decode import decode_recording, to_mono16k
from step_audio_vllm import features

MEL_TOLERANCE = 1e-4
FILTER_TOLERANCE = 1e-7
RESAMPLING_TOLERANCE = 2e-6

#: Files that resample to a recorded waveform.
SOURCES = {"speech_source.wav": "wave.speech_3s", "stereo.wav": "wave.stereo_first_channel"}


def recognises(folder: Path) -> bool:
    return (folder / "mels.safetensors").exists() and (folder / "waveforms.safetensors").exists()


def compare(comparison: Comparison) -> None:
    waveforms = comparison.load("waveforms.safetensors")
    mels = comparison.load("mels.safetensors")
    comparison.close("mel_filters", features.mel_filters(), mels["mel_filters"], FILTER_TOLERANCE)
    for name in waveforms:
        kind, _, wave = name.partition(".")
        samples = waveforms[name]
        compare_clip(comparison, wave, samples.float() / 32768 if kind == "wave_i16" else samples, mels)
    compare_counts(comparison)
    for file, name in SOURCES.items():
        if comparison.has(file) and name in waveforms:
            ours = to_mono16k(decode_recording((comparison.folder / file).read_bytes()))
            comparison.close(f"resampled {file}", torch.as_tensor(ours), waveforms[name], RESAMPLING_TOLERANCE)


def compare_clip(comparison: Comparison, wave: str, samples: Tensor, mels: Recorded) -> None:
    """One waveform against the recorded log-mel of each of its chunks."""
    rows, frames = features.clip_features(samples)
    comparison.same(f"{wave}: chunks", len(frames), len(mels.names(f"mel.{wave}.")))
    for chunk, ours in enumerate(rows.split(frames)):
        name = f"mel.{wave}.{chunk}"
        comparison.close(name, ours.T, mels[name], MEL_TOLERANCE)


def compare_counts(comparison: Comparison) -> None:
    """Every row of lengths.json, and the table of the waveforms."""
    lengths = comparison.json("lengths.json")
    for name, wave in lengths["waves"].items():
        chunks = [(chunk["samples"], chunk["mel_frames"], chunk["audio_tokens"]) for chunk in wave["chunks"]]
        comparison.same(f"{name}: counts", counts(wave["samples"]), chunks)
    for row in lengths["rows"]:
        chunks = [(chunk["samples"], chunk["mel_frames"], chunk["audio_tokens"]) for chunk in row["chunks"]]
        ours = counts(row["samples"])
        placeholders = sum(tokens for *_, tokens in ours)
        totals = (row["total_audio_tokens"], row["total_placeholder_ids"])
        comparison.same(
            f"counts of {row['samples']} samples",
            (ours, placeholders, placeholders + 2 * len(ours)),
            (chunks, *totals),
        )


def counts(samples: int) -> list[tuple[int, int, int]]:
    """Samples, log-mel frames and placeholders of each chunk."""
    return [
        (chunk, features.mel_frames(chunk), features.placeholders(features.mel_frames(chunk)))
        for chunk in features.chunk_lengths(samples)
    ]
