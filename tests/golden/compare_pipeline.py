"""Golden folder `pipeline`: a checkpoint folder, a recording and tokens, to mel and PCM, whole and streamed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from comparison import Comparison, Recorded
from torch import Tensor

from sidecar.audio.decode import decode_recording
from sidecar.audio.pcm import pcm16
from sidecar.timebase import frames_to_samples
from sidecar.token2wav import StreamState, Token2Wav, VoiceFeatures, history, seams
from sidecar.token2wav.config import load_flow_config
from sidecar.token2wav.flow import Flow
from sidecar.token2wav.noise import RecordedNoise
from sidecar.token2wav.overlap import OVERLAP_FRAMES, cross_fade, reference_fade
from sidecar.token2wav.phase import reference_phase
from sidecar.token2wav.weights import load_flow, load_vocoder
from sidecar.voices.features import VoiceExtractor

PROMPT, MEL, F0_HZ, SOURCE, SPEECH = 1e-3, 2e-4, 2e-3, 5e-3, 1e-4
STREAMED_DB, OFFLINE_DB = 35, 30
PCM_FULL_SCALE = 32767


def recognises(folder: Path) -> bool:
    return (folder / "token2wav" / "flow.yaml").exists() and (folder / "inputs.safetensors").exists()


def compare(comparison: Comparison) -> None:
    inputs = comparison.load("inputs.safetensors")
    features = VoiceFeatures(
        prompt_tokens=inputs["prompt_token"][0].long(),
        prompt_mel=inputs["prompt_mel"][0],
        speaker=inputs["spk_embedding"][0],
    )
    tokens = inputs["token"].long()
    token2wav = load(comparison, RecordedNoise(inputs["noise"][0]))
    compare_prompt(comparison, features)
    with torch.inference_mode():
        if comparison.has("offline.safetensors"):
            compare_offline(comparison, token2wav, features, tokens)
        for name, schedule in comparison.json("schedules.json").items():
            if comparison.has(f"stream_{name}.safetensors"):
                compare_stream(comparison, token2wav, features, tokens, name, schedule)


def load(comparison: Comparison, noise: RecordedNoise) -> Token2Wav:
    """As `Token2Wav.from_folder`, with the reference's history, seams and the recorded noise."""
    folder = comparison.folder / "token2wav"
    sizes = comparison.json("config.json")
    config = load_flow_config(folder / "flow.yaml", steps=sizes["n_timesteps"])
    flow = Flow(load_flow(folder / "flow.pt", config), history=history.REFERENCE)
    return Token2Wav(flow, load_vocoder(folder / "hift.pt"), noise, seams.REFERENCE)


def compare_prompt(comparison: Comparison, recorded: VoiceFeatures) -> None:
    recording = decode_recording((comparison.folder / "prompt.wav").read_bytes())
    extractor = VoiceExtractor.from_folder(comparison.folder / "token2wav")
    ours = extractor.features(recording.samples, recording.sample_rate_hz)
    comparison.same("prompt tokens", ours.prompt_tokens.tolist(), recorded.prompt_tokens.tolist())
    comparison.close("prompt mel", ours.prompt_mel, recorded.prompt_mel, PROMPT)
    comparison.close("prompt speaker", ours.speaker, recorded.speaker, PROMPT)


def compare_offline(comparison: Comparison, token2wav: Token2Wav, features: VoiceFeatures, tokens: Tensor) -> None:
    recorded = comparison.load("offline.safetensors")
    prompt_frames, vocoder = len(features.prompt_mel), token2wav.vocoder
    noise = token2wav.noise.prompt_mel(prompt_frames + recorded["mel"].shape[-1], recorded["mel"].shape[1])
    mel = token2wav.flow.whole(features, tokens, noise[None])[..., prompt_frames:]
    comparison.close("offline mel", mel, recorded["mel"], MEL)
    comparison.close("offline f0 from recorded mel", vocoder.f0(recorded["mel"]), recorded["f0"], F0_HZ)
    silence = token2wav.noise.source(0, 0, mel.shape[-1])[None]
    source = vocoder.source(recorded["f0"], reference_phase(recorded["f0"]), silence)
    comparison.close("offline source from recorded f0", source, recorded["source"], SOURCE)
    comparison.close(
        "offline speech from recorded source",
        vocoder.decode(recorded["mel"], recorded["source"]),
        recorded["speech"],
        SPEECH,
    )
    spoken = token2wav.synthesize_whole(features, tokens, seed=0)
    comparison.snr("offline pcm from tokens", pcm(spoken), recorded["pcm"], OFFLINE_DB)


def compare_stream(
    comparison: Comparison, token2wav: Token2Wav, features: VoiceFeatures, tokens: Tensor, name: str, schedule: Any
) -> None:
    recorded = comparison.load(f"stream_{name}.safetensors")
    state = token2wav.start(token2wav.open_voice(features), seed=0)
    mels, sounds = [], []
    for row, chunk in enumerate(schedule["chunks"]):
        fed = tokens[:, chunk["first_token"] : chunk["first_token"] + chunk["n_tokens"]]
        mel = mel_alone(token2wav, fed, state, last=chunk["last"])
        samples, (state,) = token2wav.step(fed, [state], last=chunk["last"])
        mels.append(mel)
        sounds.append(pcm(samples[0]))
        comparison.close(f"{name} chunk{row} mel", mel, recorded[f"chunk{row}.mel"], MEL)
        comparison.same(
            f"{name} chunk{row} lengths", [mel.shape[-1], samples.shape[-1]], [chunk["mel_frames"], chunk["samples"]]
        )
        comparison.snr(f"{name} chunk{row} pcm from tokens", sounds[-1], recorded[f"chunk{row}.pcm"], STREAMED_DB)
        compare_vocoder_call(comparison, token2wav, recorded, f"{name} chunk{row}", row)
    comparison.close(f"{name} mel", torch.cat(mels, dim=-1), recorded["mel"], MEL)
    comparison.snr(f"{name} pcm from tokens", torch.cat(sounds), recorded["pcm"], STREAMED_DB)


def mel_alone(token2wav: Token2Wav, tokens: Tensor, state: StreamState, *, last: bool) -> Tensor:
    """The flow's part of the step that follows."""
    frames = token2wav.flow.encode(tokens, state.flow, last=last).mu.shape[-1]
    noise = token2wav.noise.speech_mel(
        state.seed, state.flow.prompt_frames[0], state.frames_done, frames, token2wav.flow.config.output_size
    )
    return token2wav.flow.step(tokens, [state.flow], noise[None], last=last)[0]


def compare_vocoder_call(
    comparison: Comparison, token2wav: Token2Wav, recorded: Recorded, title: str, row: int
) -> None:
    """One call's stages, each from the recorded result of the one before, so that no error adds up on the way."""
    vocoder, overlap = token2wav.vocoder, frames_to_samples(OVERLAP_FRAMES)
    mel, source, f0 = (recorded[f"chunk{row}.{part}"] for part in ("mel", "source", "f0"))
    made = vocoder.source(f0, reference_phase(f0), token2wav.noise.source(0, 0, f0.shape[-1])[None])
    if row:
        seen = torch.cat([recorded[f"chunk{before}.mel"] for before in range(row)], dim=-1)
        mel = torch.cat([seen[..., -OVERLAP_FRAMES:], mel], dim=-1)
        made = torch.cat([recorded[f"chunk{row - 1}.source"][..., -overlap:], made[..., overlap:]], dim=-1)
    comparison.close(f"{title} f0 from recorded mel", vocoder.f0(mel), f0, F0_HZ)
    comparison.close(f"{title} source from recorded f0", made, source, SOURCE)
    speech = vocoder.decode(mel, source)
    if row:
        speech = cross_fade(speech, recorded[f"chunk{row - 1}.cache_speech"], reference_fade())
    given = recorded[f"chunk{row}.pcm"]
    made = pcm(speech[0, : len(given)])
    comparison.close(f"{title} pcm from recorded source", made / PCM_FULL_SCALE, given / PCM_FULL_SCALE, SPEECH)
    comparison.close(f"{title} withheld speech", speech[:, -overlap:], recorded[f"chunk{row}.cache_speech"], SPEECH)


def pcm(samples: Tensor) -> Tensor:
    return torch.from_numpy(pcm16(samples.numpy()))
