"""Streamed vocoding against whole vocoding of the same mel, ours beside the authors' way: levels, steps, SNR, time.

    python benchmarks/seams.py --figure docs/seams.png
    python benchmarks/seams.py --sound glide.wav                       # to be drawn by sidecar.token2wav.inspect
    python benchmarks/seams.py --golden FOLDER     # with token2wav/hift.pt, and a mel in offline.safetensors

Without --golden the weights are random, at the real sizes. A vowel and a glide are spoken at a given pitch; on mels the
network reads its own. The mel is the same in both ways, so that nothing but the vocoding is compared.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import soundfile
import torch
from machine import machine
from safetensors.torch import load_file
from seam_measures import (
    chunk_frames,
    glide,
    held_vowel,
    measure,
    moving_mel,
    noise_of,
    signal_to_noise_db,
    stream,
    with_pitch_in_mel,
)
from torch import Tensor

from sidecar.timebase import SAMPLE_RATE_HZ
from sidecar.token2wav.overlap import OVERLAP_SAMPLES
from sidecar.token2wav.seams import CONTINUOUS, REFERENCE, ContinuousSeams, SeamPolicy
from sidecar.token2wav.synthetic import SIZES
from sidecar.token2wav.synthetic_weights import vocoder_tensors
from sidecar.token2wav.vocoder import Vocoder
from sidecar.token2wav.weights import load_vocoder
from sidecar.token2wav.weights import vocoder_tensors as folded

POLICIES: dict[str, SeamPolicy] = {"ours": CONTINUOUS, "the authors'": REFERENCE}
#: Tokens a chunk; the last number goes on. What runs by default comes first.
PLANS = ((10, 20, 25), (25,))
SMALL_PLANS = ((5,), (3,), (2,), (1,))
CONTEXTS = (2, 4, 6, 8, 12)
FADES_SAMPLES = (0, 120, 480, 1920, OVERLAP_SAMPLES)
FRAMES = 150
SECOND_FRAMES = 50


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=sorted(SIZES), default="full", help="of the random weights (default: full)")
    parser.add_argument("--golden", type=Path, metavar="FOLDER", help="weights and a mel of recordings instead")
    parser.add_argument("--sweep", action="store_true", help="SNR for other contexts and fades too")
    parser.add_argument("--figure", type=Path, metavar="FILE", help="draw a border of the held vowel, and stop")
    parser.add_argument("--sound", type=Path, metavar="WAV", help="write a glide joined in the authors' way, and stop")
    parser.add_argument("--device", default="cpu")
    asked = parser.parse_args(arguments)
    vocoder = (load_vocoder(asked.golden / "token2wav" / "hift.pt") if asked.golden else synthetic(asked.size)).eval()
    vocoder = vocoder.to(asked.device)
    if asked.figure:
        from seam_figure import draw  # noqa: PLC0415 - brings matplotlib, which the tables do without

        draw(with_pitch_in_mel(vocoder), POLICIES, asked.figure)
        return 0
    if asked.sound:
        write_glide(with_pitch_in_mel(vocoder), asked.sound)
        return 0
    mel = load_file(asked.golden / "offline.safetensors")["mel"][..., :FRAMES] if asked.golden else moving_mel(FRAMES)
    print(f"{machine()}, {asked.golden or 'random weights, ' + asked.size}\n")
    table_of_seams(vocoder, mel.to(asked.device))
    if asked.sweep:
        table_of_contexts(vocoder, mel.to(asked.device))
    table_of_times(vocoder, mel.to(asked.device))
    return 0


def write_glide(vocoder: Vocoder, path: Path) -> None:
    mel = glide(FRAMES)
    pieces = stream(REFERENCE, vocoder, mel, noise_of(mel), chunk_frames(FRAMES, *PLANS[0]))
    soundfile.write(path, torch.cat(pieces, dim=-1)[0].numpy(), SAMPLE_RATE_HZ)


def synthetic(size: str, seed: int = 0) -> Vocoder:
    """The vocoder of a synthetic checkpoint."""
    _, config = SIZES[size]
    vocoder = Vocoder(config)
    vocoder.load_state_dict(folded(vocoder_tensors(config, seed)))
    return vocoder


def table_of_seams(vocoder: Vocoder, mel: Tensor) -> None:
    print("| sound | tokens a chunk | seams | border against middle | step at borders, within | SNR against whole |")
    print("|---|---|---|---|---|---|")
    at_given_pitch = with_pitch_in_mel(vocoder)
    sounds = (
        ("held vowel", at_given_pitch, held_vowel(FRAMES).to(mel.device)),
        ("glide", at_given_pitch, glide(FRAMES).to(mel.device)),
        ("mel", vocoder, mel),
    )
    for name, network, spoken in sounds:
        noise = noise_of(spoken)
        for plan in PLANS:
            for seams, policy in POLICIES.items():
                found = measure(policy, network, spoken, noise, chunk_frames(spoken.shape[-1], *plan))
                print(
                    f"| {name} | {plan_text(plan)} | {seams} | {found.level_db:.4f} dB "
                    f"| {found.border_step:.4f}, {found.inner_step:.4f} | {found.snr_db:.1f} dB |"
                )
    for plan in SMALL_PLANS:
        snr = _snr(CONTINUOUS, vocoder, mel, plan)
        print(f"| mel | {plan_text(plan)} | ours | | | {snr:.1f} dB |")


def table_of_contexts(vocoder: Vocoder, mel: Tensor) -> None:
    print("\nSNR against whole in dB, mel, " + plan_text(PLANS[0]) + " tokens a chunk")
    print("| frames of context | " + " | ".join(f"fade {1000 * fade / 24000:g} ms" for fade in FADES_SAMPLES) + " |")
    print("|---" * (1 + len(FADES_SAMPLES)) + "|")
    for context in CONTEXTS:
        row = [_snr(ContinuousSeams(context, fade), vocoder, mel, PLANS[0]) for fade in FADES_SAMPLES]
        print(f"| {context} | " + " | ".join(f"{snr:.1f}" for snr in row) + " |")


def table_of_times(vocoder: Vocoder, mel: Tensor, *, repeats: int = 7) -> None:
    """Of the middle one of three chunks of 1 s; the ways take turns, so that both meet the same machine."""
    print()
    for streams in (1, 8, 32) if mel.is_cuda else (1,):
        took: dict[str, list[float]] = {seams: [] for seams in POLICIES}
        for repeat in range(repeats + 1):
            for seams, policy in POLICIES.items():
                milliseconds = time_chunk(policy, vocoder, mel.expand(streams, -1, -1))
                if repeat:  # the first warms up
                    took[seams].append(milliseconds)
        medians = {seams: statistics.median(times) for seams, times in took.items()}
        ratio = medians["ours"] / medians["the authors'"]
        words = ", ".join(f"{seams} {ms:.1f} ms" for seams, ms in medians.items())
        print(f"vocoding 1 s, {streams} x: {words}, ratio {ratio:.3f}")


@torch.inference_mode()
def time_chunk(policy: SeamPolicy, vocoder: Vocoder, mel: Tensor) -> float:
    state, noise = policy.initial_state(vocoder, len(mel)), noise_of(mel)
    _, state = policy.step(
        vocoder,
        mel[..., :SECOND_FRAMES],
        state,
        noise[:, : noise.shape[1] * SECOND_FRAMES // mel.shape[-1]],
        last=False,
    )
    call = noise[:, : noise.shape[1] * (state.held_frames + SECOND_FRAMES) // mel.shape[-1]]
    _synchronise(mel.device)
    started_at = time.perf_counter()
    policy.step(vocoder, mel[..., SECOND_FRAMES : 2 * SECOND_FRAMES], state, call, last=False)
    _synchronise(mel.device)
    return 1000 * (time.perf_counter() - started_at)


def plan_text(plan: Sequence[int]) -> str:
    return ", ".join(map(str, plan)) + ", ..."


def _snr(policy: SeamPolicy, vocoder: Vocoder, mel: Tensor, plan: Sequence[int]) -> float:
    noise = noise_of(mel)
    streamed = torch.cat(stream(policy, vocoder, mel, noise, chunk_frames(mel.shape[-1], *plan)), dim=-1)
    with torch.inference_mode():
        whole = policy.whole(vocoder, mel, noise)
    return signal_to_noise_db(streamed.double(), whole.double())


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    sys.exit(main())
