"""A folder of recorded vocoder numbers against our vocoder: parts, whole calls, streams, both spellings of names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from comparison import Comparison, Recorded
from torch import Tensor

from sidecar.audio.pcm import pcm16
from sidecar.timebase import frames_to_samples
from sidecar.token2wav.overlap import OVERLAP_SAMPLES, cross_fade, reference_fade
from sidecar.token2wav.phase import HARMONICS, reference_phase
from sidecar.token2wav.seams import REFERENCE
from sidecar.token2wav.seams.reference import ReferenceState
from sidecar.token2wav.source import voiced_samples, voiced_sines
from sidecar.token2wav.vocoder import MAX_MAGNITUDE, Vocoder
from sidecar.token2wav.weights import load_tensors, load_vocoder, vocoder_tensors

NETWORK = 1e-4
SOURCE = 5e-3
F0_HZ = 2e-3
WEIGHTS = 1e-6
SPEECH_DB = 40.0

PREFIXED = "hift_prefixed_old_names.safetensors"


def recognises(folder: Path) -> bool:
    return (folder / "hift.safetensors").exists() and (folder / "config.json").exists()


@torch.inference_mode()
def compare(comparison: Comparison) -> None:
    vocoder = load_vocoder(comparison.weights("hift.safetensors"))
    _sizes(comparison, vocoder)
    files: tuple[tuple[str, Callable[[Comparison, Vocoder], None]], ...] = (
        ("units.safetensors", _units),
        ("offline.safetensors", _offline),
        ("stream.safetensors", _stream),
        (PREFIXED, _old_names),
    )
    for file, check in files:
        if comparison.has(file):
            check(comparison, vocoder)


def _sizes(comparison: Comparison, vocoder: Vocoder) -> None:
    sizes = comparison.json("config.json")
    ours = {
        "in_channels": vocoder.config.mel_bins,
        "base_channels": vocoder.config.base_channels,
        "f0_cond_channels": vocoder.config.f0_channels,
    }
    comparison.same("config.json: sizes read off the tensors", ours, {name: sizes[name] for name in ours})


def _old_names(comparison: Comparison, vocoder: Vocoder) -> None:
    old = load_vocoder(comparison.weights(PREFIXED))
    for name, ours in vocoder.state_dict().items():
        comparison.close(f"{PREFIXED}: {name}", old.state_dict()[name], ours, WEIGHTS)


def _units(comparison: Comparison, vocoder: Vocoder) -> None:
    units = comparison.load("units.safetensors")
    weights = vocoder_tensors(load_tensors(comparison.folder / "hift.safetensors"))
    for name in units.names("weight."):
        comparison.close(name, weights[name.removeprefix("weight.") + ".weight"], units[name], WEIGHTS)
    _network_units(comparison, vocoder, units)
    _source_units(comparison, vocoder, units)
    fade_in, fade_out = reference_fade()
    comparison.close("fade.window", torch.cat([fade_in, fade_out]), units["fade.window"], WEIGHTS)
    comparison.close(
        "fade.out", cross_fade(units["fade.new"], units["fade.old"], (fade_in, fade_out)), units["fade.out"], NETWORK
    )
    comparison.same("pcm.out", _pcm(units["pcm.in"]).tolist(), units["pcm.out"].tolist())


def _network_units(comparison: Comparison, vocoder: Vocoder, units: Recorded) -> None:
    block_in = units["resblock1.in"]
    comparison.close("snake.out", vocoder.resblocks[1].activations1[0](block_in), units["snake.out"], NETWORK)
    comparison.close("resblock1.out", vocoder.resblocks[1](block_in), units["resblock1.out"], NETWORK)
    comparison.close(
        "source_resblock0.out", vocoder.source_resblocks[0](block_in), units["source_resblock0.out"], NETWORK
    )
    real, imaginary = vocoder.stft.analyse(units["stft.in"]).chunk(2, dim=1)
    comparison.close("stft.real", real, units["stft.real"], NETWORK)
    comparison.close("stft.imag", imaginary, units["stft.imag"], NETWORK)
    magnitude = units["istft.magnitude"].clamp(max=MAX_MAGNITUDE)
    comparison.close("istft.out", vocoder.stft.synthesise(magnitude, units["istft.phase"]), units["istft.out"], NETWORK)


def _source_units(comparison: Comparison, vocoder: Vocoder, units: Recorded) -> None:
    f0 = units["sine.f0"]
    phase = reference_phase(f0)
    comparison.close("sine.unit_sines", torch.sin(phase), units["sine.unit_sines"], SOURCE)
    comparison.same("sine.uv", bool((voiced_samples(f0) == units["sine.uv"]).all()), True)
    comparison.close("sine.waves_no_noise", voiced_sines(f0, phase), units["sine.waves_no_noise"], SOURCE)
    silent = vocoder.source(f0, phase, torch.zeros_like(phase))
    comparison.close("sine.source_no_noise", silent, units["sine.source_no_noise"], SOURCE)


def _offline(comparison: Comparison, vocoder: Vocoder) -> None:
    recorded = comparison.load("offline.safetensors")
    mel, f0 = recorded["mel"], recorded["f0"]
    _ = recorded["recorded.phase"]  # start phases: they change nothing
    comparison.close("f0", vocoder.f0(mel), f0, F0_HZ)
    noise_of = {"recorded": recorded["recorded.noise"].float()}
    noise_of["zero"] = torch.zeros_like(noise_of["recorded"])
    for kind, noise in noise_of.items():
        source, speech = recorded[f"{kind}.source"], recorded[f"{kind}.speech"]
        comparison.close(f"{kind}.source", vocoder.source(f0, reference_phase(f0), noise), source, SOURCE)
        comparison.close(f"{kind}.speech from its source", vocoder.decode(mel, source), speech, NETWORK)
        comparison.snr(f"{kind}.speech from mel", REFERENCE.whole(vocoder, mel, noise), speech, SPEECH_DB)
    for name in ("explicit", "loud"):
        mel_of = recorded["loud.mel"] if name == "loud" else mel
        comparison.close(
            f"{name}.speech", vocoder.decode(mel_of, recorded["explicit.source"]), recorded[f"{name}.speech"], NETWORK
        )


def _stream(comparison: Comparison, vocoder: Vocoder) -> None:
    recorded = comparison.load("stream.safetensors")
    for kind in (kind for kind in ("zero", "recorded") if f"{kind}.speech" in recorded):
        speech = _streamed(comparison, vocoder, recorded, kind)
        comparison.snr(f"stream {kind}.speech", speech, recorded[f"{kind}.speech"], SPEECH_DB)
        comparison.snr(f"stream {kind}.pcm", _pcm(speech), recorded[f"{kind}.pcm"], SPEECH_DB)
        comparison.same(
            f"stream {kind}.pcm of its speech",
            bool((_pcm(recorded[f"{kind}.speech"]) == recorded[f"{kind}.pcm"]).all()),
            True,
        )
    mel, source = recorded["mel"], recorded["offline_zero.source"]
    noise = torch.zeros(1, source.shape[-1], HARMONICS)
    comparison.snr("offline_zero.source from mel", _source_of(vocoder, mel, noise), source, SPEECH_DB)
    comparison.close(
        "offline_zero.speech from its source", vocoder.decode(mel, source), recorded["offline_zero.speech"], NETWORK
    )
    whole = REFERENCE.whole(vocoder, mel, noise)
    comparison.snr("offline_zero.speech", whole, recorded["offline_zero.speech"], SPEECH_DB)


def _streamed(comparison: Comparison, vocoder: Vocoder, recorded: Recorded, kind: str) -> Tensor:
    """The recorded stream through `step`, each chunk compared; all its samples (1, S)."""
    schedule = comparison.json("schedule.json")
    chunks = recorded["mel"].split(schedule["chunk_frames"], dim=-1)
    state, withheld = REFERENCE.initial_state(vocoder, 1), None
    spoken = []
    for index, chunk in enumerate(chunks):
        name = f"{kind}.chunk{index}"
        noise = torch.zeros(1, frames_to_samples(schedule["call_frames"][index]), HARMONICS)
        if f"{name}.noise" in recorded:
            noise = recorded[f"{name}.noise"].float()
            _ = recorded[f"{name}.phase"]
        seen = torch.cat([state.mel, chunk], dim=-1)
        _source(comparison, vocoder, recorded, name, seen, state, noise)
        withheld = _network(comparison, vocoder, recorded, name, seen, withheld)
        samples, state = REFERENCE.step(vocoder, chunk, state, noise, last=index == len(chunks) - 1)
        comparison.same(f"stream {name} samples", samples.shape[-1], schedule["emitted_samples"][index])
        comparison.snr(f"stream {name}.speech", samples, recorded[f"{name}.speech"], SPEECH_DB)
        _state(comparison, recorded, name, state)
        spoken.append(samples)
    return torch.cat(spoken, dim=-1)


def _source(
    comparison: Comparison,
    vocoder: Vocoder,
    recorded: Recorded,
    name: str,
    seen: Tensor,
    state: ReferenceState,
    noise: Tensor,
) -> None:
    """One call's source from mel, with the held part put in."""
    ours = _source_of(vocoder, seen, noise)
    put_in = torch.cat([state.source, ours[..., state.source.shape[-1] :]], dim=-1)
    comparison.snr(f"stream {name}.source from mel", put_in, recorded[f"{name}.source"], SPEECH_DB)


def _network(
    comparison: Comparison, vocoder: Vocoder, recorded: Recorded, name: str, seen: Tensor, withheld: Tensor | None
) -> Tensor:
    """One call from its recorded source, faded in over what the call before withheld; what this one withholds."""
    speech = vocoder.decode(seen, recorded[f"{name}.source"])
    if f"{name}.raw_speech" in recorded:
        comparison.close(f"stream {name}.raw_speech from its source", speech, recorded[f"{name}.raw_speech"], NETWORK)
    if withheld is not None:
        speech = cross_fade(speech, withheld, reference_fade())
    given = recorded[f"{name}.speech"]
    comparison.close(f"stream {name}.speech from its source", speech[:, : given.shape[-1]], given, NETWORK)
    withheld = speech[:, -OVERLAP_SAMPLES:]
    if f"{name}.cache_speech" in recorded:
        comparison.close(
            f"stream {name}.cache_speech from its source", withheld, recorded[f"{name}.cache_speech"], NETWORK
        )
    return withheld


def _state(comparison: Comparison, recorded: Recorded, name: str, state: ReferenceState) -> None:
    if f"{name}.cache_mel" not in recorded:
        return
    comparison.close(f"stream {name}.cache_mel", state.mel, recorded[f"{name}.cache_mel"], WEIGHTS)
    comparison.snr(f"stream {name}.cache_source", state.source, recorded[f"{name}.cache_source"], SPEECH_DB)
    comparison.snr(f"stream {name}.cache_speech", state.speech, recorded[f"{name}.cache_speech"], SPEECH_DB)


def _source_of(vocoder: Vocoder, mel: Tensor, noise: Tensor) -> Tensor:
    f0 = vocoder.f0(mel)
    return vocoder.source(f0, reference_phase(f0), noise)


def _pcm(samples: Tensor) -> Tensor:
    return torch.from_numpy(np.asarray(pcm16(samples.numpy())))
