"""Golden folder `flow`: speech tokens to mel, whole and streamed, with every layer and every cache on the way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from comparison import Comparison, Recorded
from safetensors.torch import load_file
from torch import Tensor

from sidecar.timebase import FRAMES_PER_TOKEN, tokens_to_frames
from sidecar.token2wav.config import FlowConfig
from sidecar.token2wav.conformer import position_angles
from sidecar.token2wav.estimator import Conditions, Estimator, EstimatorPast, time_sinusoid
from sidecar.token2wav.flow import Flow, FlowNetwork
from sidecar.token2wav.history import REFERENCE
from sidecar.token2wav.noise import RecordedNoise
from sidecar.token2wav.solver import time_schedule
from sidecar.token2wav.state import FlowState, VoiceFeatures
from sidecar.token2wav.upsample_encoder import LOOKAHEAD_TOKENS, UpsampleEncoder
from sidecar.token2wav.weights import load_flow

MU, MEL, CACHE, UNIT = 1e-4, 2e-4, 2e-4, 1e-4

#: Keys of config.json beside the sizes of the flow itself.
_COUNTS = ("n_timesteps", "prompt_tokens", "prompt_frames", "generated_tokens")


def recognises(folder: Path) -> bool:
    weights, config = folder / "weights.safetensors", folder / "config.json"
    return (
        (folder / "inputs.safetensors").exists()
        and weights.exists()
        and config.exists()
        and ("decoder.estimator.in_proj.weight" in load_file(weights))
    )


def compare(comparison: Comparison) -> None:
    flow = load(comparison)
    inputs = comparison.load("inputs.safetensors")
    features = VoiceFeatures(
        prompt_tokens=inputs["prompt_token"][0].long(),
        prompt_mel=inputs["prompt_mel"][0],
        speaker=inputs["spk_embedding"][0],
    )
    tokens, noise = inputs["token"].long(), RecordedNoise(inputs["noise"][0])
    if comparison.has("offline.safetensors"):
        compare_offline(comparison, flow, features, tokens, noise)
    if comparison.has("setup.safetensors"):
        compare_setup(comparison, flow, features, noise)
    for name, schedule in comparison.json("schedules.json").items():
        if comparison.has(f"stream_{name}.safetensors"):
            compare_stream(comparison, flow, shortened(features, schedule), tokens, noise, name, schedule)
    if comparison.has("units.safetensors"):
        compare_units(comparison, flow.network)


def load(comparison: Comparison) -> Flow:
    sizes = comparison.json("config.json")
    config = FlowConfig.from_mapping(
        {key: value for key, value in sizes.items() if key not in _COUNTS}, steps=sizes["n_timesteps"]
    )
    return Flow(load_flow(comparison.weights("weights.safetensors"), config), history=REFERENCE)


def open_voice(flow: Flow, features: VoiceFeatures, noise: RecordedNoise) -> tuple[Tensor, FlowState]:
    return flow.open_voice(features, noise.prompt_mel(len(features.prompt_mel), flow.config.output_size)[None])


def shortened(features: VoiceFeatures, schedule: Any) -> VoiceFeatures:
    """The prompt a schedule was recorded with: what its first chunk found in the cache tells how long it was."""
    frames = schedule["chunks"][0]["est_len_before"]
    tokens = frames // FRAMES_PER_TOKEN
    return VoiceFeatures(features.prompt_tokens[:tokens], features.prompt_mel[:frames], features.speaker)


def compare_offline(
    comparison: Comparison, flow: Flow, features: VoiceFeatures, tokens: Tensor, noise: RecordedNoise
) -> None:
    recorded = comparison.load("offline.safetensors")
    state = flow.initial_state(features.speaker, prompt_tokens=len(features.prompt_tokens))
    encoded = flow.encode(torch.cat([features.prompt_tokens[None], tokens], dim=1), state, last=True)
    prompt_frames = len(features.prompt_mel)
    mel = flow.whole(features, tokens, noise.prompt_mel(*reversed(encoded.mu.shape[1:]))[None])
    comparison.close("offline encoder_out", encoded.hidden, recorded["encoder_out"], MU)
    comparison.close("offline mu", encoded.mu, recorded["mu"], MU)
    comparison.close("offline spk_projected", state.speaker, recorded["spk_projected"], MU)
    comparison.close("offline feat_with_prompt", mel, recorded["feat_with_prompt"], MEL)
    comparison.close("offline mel", mel[..., prompt_frames:], recorded["mel"], MEL)


def compare_setup(comparison: Comparison, flow: Flow, features: VoiceFeatures, noise: RecordedNoise) -> None:
    recorded = comparison.load("setup.safetensors")
    mel, state = open_voice(flow, features, noise)
    prompt = features.prompt_tokens
    encoded = flow.encode(
        torch.cat([prompt, prompt[:LOOKAHEAD_TOKENS]])[None],
        flow.initial_state(features.speaker, prompt_tokens=len(prompt)),
        last=False,
    )
    comparison.close("setup mu", encoded.mu, recorded["mu"], MU)
    comparison.close("setup feat", mel, recorded["feat"], MEL)
    compare_state(comparison, "setup", state, recorded, "", range(len(features.prompt_mel)))


def compare_stream(
    comparison: Comparison,
    flow: Flow,
    features: VoiceFeatures,
    tokens: Tensor,
    noise: RecordedNoise,
    name: str,
    schedule: Any,
) -> None:
    recorded = comparison.load(f"stream_{name}.safetensors")
    _, state = open_voice(flow, features, noise)
    mels = []
    for row, chunk in enumerate(schedule["chunks"]):
        fed = tokens[:, chunk["first_token"] : chunk["first_token"] + chunk["n_tokens"]]
        mu = flow.encode(fed, state, last=chunk["last"]).mu
        before = len(state.estimator.frames[0])
        start = noise.speech_mel(0, state.prompt_frames[0], state.frames_done[0], *reversed(mu.shape[1:]))
        mel, (state,) = flow.step(fed, [state], start[None], last=chunk["last"])
        mels.append(mel)
        title = f"{name} chunk{row}"
        comparison.close(f"{title} mu", mu, recorded[f"chunk{row}.mu"], MU)
        comparison.close(f"{title} mel", mel, recorded[f"chunk{row}.mel"], MEL)
        ours = [mel.shape[-1], before, len(state.estimator.frames[0]), tokens_to_frames(len(state.encoder.tokens[0]))]
        comparison.same(
            f"{title} lengths",
            ours,
            [chunk[key] for key in ("mel_frames", "est_len_before", "est_len_after", "encoder_frames_after")],
        )
    comparison.close(f"{name} mel", torch.cat(mels, dim=-1), recorded["mel"], MEL)
    frames = recorded["final.estimator_frame_index"].tolist()
    comparison.same(f"{name} frames kept", sorted(state.estimator.frames[0]), sorted(frames))
    compare_state(comparison, name, state, recorded, "final.", frames)


def compare_state(
    comparison: Comparison, title: str, state: FlowState, recorded: Recorded, prefix: str, frames: Any
) -> None:
    """Every cache of a stream; the estimator's columns are put in the recorded order of frames first."""
    encoder, estimator = state.encoder, state.estimator
    order = [estimator.frames[0].index(frame) for frame in frames if frame in estimator.frames[0]]
    keys_values = estimator.keys_values[:, :, :, 0].index_select(-2, torch.tensor(order))  # (K, blocks, 2, H, L, 2D)
    ours = {
        "conformer_cnn_cache": torch.cat([encoder.lookahead_past, encoder.upsample_past], dim=-1),
        "encoder_att_cache": encoder.token_keys_values,
        "up_encoder_att_cache": encoder.frame_keys_values,
        "estimator_cnn_cache": estimator.conv_past[:, :, :, 0],
        "estimator_att_cache": keys_values,
        "estimator_att_cache.step_first": keys_values[0],
        "estimator_att_cache.step_last": keys_values[-1],
    }
    for name, tensor in ours.items():
        if prefix + name in recorded:
            comparison.close(f"{title} {name}", tensor, recorded[prefix + name], CACHE)


def compare_units(comparison: Comparison, network: FlowNetwork) -> None:
    recorded = comparison.load("units.safetensors")
    with torch.inference_mode():
        compare_time(comparison, network.decoder.estimator, recorded)
        compare_encoder_layers(comparison, network.encoder, recorded)
        compare_conformer(comparison, network.encoder, recorded)
        compare_padded_encoder(comparison, network.encoder, recorded)
        compare_block(comparison, network.decoder.estimator, recorded)
        compare_estimator(comparison, network.decoder.estimator, recorded)


def compare_time(comparison: Comparison, estimator: Estimator, recorded: Recorded) -> None:
    times = recorded["time.t"]
    comparison.close("time.t_span", time_schedule(len(recorded["time.t_span"]) - 1), recorded["time.t_span"], UNIT)
    comparison.close("time.sinusoid", time_sinusoid(times), recorded["time.sinusoid"], UNIT)
    comparison.close("time.embedding", estimator.t_embedder(times), recorded["time.embedding"], UNIT)


def compare_encoder_layers(comparison: Comparison, encoder: UpsampleEncoder, recorded: Recorded) -> None:
    table = recorded["pos.table7"]
    furthest = table.shape[1] // 2
    cosine, sine = position_angles(torch.arange(furthest, -furthest - 1, -1)[None], table.shape[2])
    comparison.close("pos.table7", torch.stack([sine, cosine], dim=-1).flatten(2), table, UNIT)
    comparison.close("embed.out", encoder.embed(recorded["embed.in"]), recorded["embed.out"], UNIT)
    comparison.close("up_embed.out", encoder.up_embed(recorded["embed.in"]), recorded["up_embed.out"], UNIT)

    start, x, look = encoder.initial_state(1), recorded["prelook.in"], encoder.pre_lookahead_layer
    first = recorded["prelook.chunk0_out"].shape[1]
    whole, _ = look(x, start.lookahead_past, last=True)
    chunk0, past0 = look(x[:, : first + LOOKAHEAD_TOKENS], start.lookahead_past, last=False)
    chunk1, past1 = look(x[:, first:], past0, last=False)
    for name, ours in (
        ("offline_out", whole),
        ("chunk0_out", chunk0),
        ("chunk0_cache", past0),
        ("chunk1_out", chunk1),
        ("chunk1_cache", past1),
    ):
        comparison.close(f"prelook.{name}", ours, recorded[f"prelook.{name}"], UNIT)

    x, first = recorded["upsample.in"], recorded["upsample.chunk0_out"].shape[2] // FRAMES_PER_TOKEN
    whole, _ = encoder.up_layer(x, start.upsample_past)
    chunk0, past0 = encoder.up_layer(x[..., :first], start.upsample_past)
    chunk1, past1 = encoder.up_layer(x[..., first:], past0)
    for name, ours in (
        ("offline_out", whole),
        ("chunk0_out", chunk0),
        ("chunk0_cache", past0),
        ("chunk1_out", chunk1),
        ("chunk1_cache", past1),
    ):
        comparison.close(f"upsample.{name}", ours, recorded[f"upsample.{name}"], UNIT)


def compare_conformer(comparison: Comparison, encoder: UpsampleEncoder, recorded: Recorded) -> None:
    x, block, start = recorded["conformer.in"], encoder.encoders[0], encoder.initial_state(1).token_keys_values[0]
    total, first = x.shape[1], recorded["conformer.chunk0_out"].shape[1]
    angles = position_angles(torch.arange(total)[None], x.shape[2])
    first_angles = (angles[0][:, :first], angles[1][:, :first])
    whole, keys_values = block(x, start, angles, None)
    chunk0, new0 = block(x[:, :first], start, first_angles, None)
    chunk1, new1 = block(x[:, first:], new0, angles, None)
    for name, ours in (
        ("out", whole),
        ("kv", keys_values),
        ("chunk0_out", chunk0),
        ("chunk0_kv", new0),
        ("chunk1_out", chunk1),
        ("chunk1_kv", torch.cat([new0, new1], dim=2)),
    ):
        comparison.close(f"conformer.{name}", ours, recorded[f"conformer.{name}"], UNIT)


def compare_padded_encoder(comparison: Comparison, encoder: UpsampleEncoder, recorded: Recorded) -> None:
    x, lengths = recorded["encoder_padded.in"], recorded["encoder_padded.lens"]
    steps = torch.arange(x.shape[1]).expand(x.shape[:2])
    out, _ = encoder(x, encoder.initial_state(len(x)), steps, steps < lengths[:, None], last=True)
    comparison.close("encoder_padded.out", out, recorded["encoder_padded.out"], UNIT)


def compare_block(comparison: Comparison, estimator: Estimator, recorded: Recorded) -> None:
    x, block = recorded["dit_block.x"], estimator.blocks[0]
    first = recorded["dit_block.chunk0_out"].shape[1]
    modulation = block.adaLN_modulation(recorded["dit_block.c"])
    start = EstimatorPast(*(past[0] for past in estimator.initial_past(len(x))))
    whole, _ = block(x, modulation, start, None)
    chunk0, after0 = block(x[:, :first], modulation, start, None)
    chunk1, after1 = block(x[:, first:], modulation, after0, None)
    for name, ours in (
        ("out", whole),
        ("chunk0_out", chunk0),
        ("chunk0_cnn", after0.conv),
        ("chunk0_att", after0.keys_values),
        ("chunk1_out", chunk1),
        ("chunk1_cnn", after1.conv),
        ("chunk1_att", newest_first(after0, after1)),
    ):
        comparison.close(f"dit_block.{name}", ours, recorded[f"dit_block.{name}"], UNIT)


def compare_estimator(comparison: Comparison, estimator: Estimator, recorded: Recorded) -> None:
    x, mu, cond = (recorded[f"estimator.{name}"] for name in ("x", "mu", "cond"))
    modulation = estimator.modulation(recorded["estimator.t"])
    given = Conditions(mu, recorded["estimator.spks"], cond)
    first = recorded["estimator.chunk0_out"].shape[2]
    start = estimator.initial_past(len(x))
    early, late = (
        Conditions(mu[..., part], given.speaker, cond[..., part]) for part in (slice(0, first), slice(first, None))
    )
    whole, _ = estimator(x, given, modulation, start, None)
    masked, _ = estimator(x, given, modulation, start, recorded["estimator.mask"][:, 0] > 0)
    chunk0, after0 = estimator(x[..., :first], early, modulation, start, None)
    chunk1, after1 = estimator(x[..., first:], late, modulation, after0, None)
    for name, ours in (
        ("out_full_mask", whole),
        ("out_masked", masked),
        ("chunk0_out", chunk0),
        ("chunk0_cnn", after0.conv),
        ("chunk0_att", after0.keys_values),
        ("chunk1_out", chunk1),
        ("chunk1_cnn", after1.conv),
        ("chunk1_att", newest_first(after0, after1)),
    ):
        comparison.close(f"estimator.{name}", ours, recorded[f"estimator.{name}"], UNIT)


def newest_first(before: EstimatorPast, after: EstimatorPast) -> Tensor:
    """The recorded order of keys and values: the newest chunk's in front."""
    return torch.cat([after.keys_values, before.keys_values], dim=-2)
