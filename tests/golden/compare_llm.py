"""A complete checkpoint run in vLLM with the plugin: prompts as ids and as chats, greedy ids, logits, embeddings.

vLLM hands out log-probabilities, which are logits up to a constant: the recorded logits are put through log-softmax
and compared over the whole vocabulary. Engine and comparison are two processes, so that nothing of the engine stays.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import soundfile
import torch
from compare_audio_encoder import build
from compare_ta4 import split_ids
from comparison import Comparison
from llm_in_vllm import PADDED_BATCH
from safetensors.torch import load_file
from torch import Tensor
from vllm_environment import VLLM_ENVIRONMENT

from sidecar.engine.text import TextTokenizer
from step_audio_vllm.config import StepAudio2Config
from step_audio_vllm.encoder import embed_chunks
from step_audio_vllm.features import CHUNK_SAMPLES, chunk_lengths, clip_features, mel_frames, placeholders

LOGIT_TOLERANCE = 5e-3
EMBEDDING_TOLERANCE = 2e-5


def recognises(folder: Path) -> bool:
    return (folder / "checkpoint").is_dir() and (folder / "first_logits.safetensors").exists()


def compare(comparison: Comparison) -> None:
    compare_embeddings(comparison)
    recording = comparison.json("cases.json")
    text = TextTokenizer.from_folder(comparison.folder / "checkpoint")
    names = recording["special_token_ids"]
    comparison.same(
        "special token ids", {name: text.encode(name) for name in names}, {n: [i] for n, i in names.items()}
    )
    answers, logprobs = run_in_vllm(comparison.folder)
    recorded = comparison.load("first_logits.safetensors")
    for case in recording["cases"]:
        name = case["name"]
        compare_parts(comparison, case, text)
        compare_chat_prompt(comparison, case, answers[name]["chat_prompt_token_ids"])
        for key, greedy in ((name, case["greedy"]), (name + PADDED_BATCH, case.get("greedy_padded_batch"))):
            if greedy is None:
                continue
            comparison.same(f"{key}: prompt ids", answers[key]["prompt_token_ids"], case["prompt_token_ids"])
            compare_reply(comparison, key, answers[key], greedy)
            expected = torch.log_softmax(recorded[key].double(), dim=-1)
            comparison.close(f"{key}: first logits", logprobs[key], expected, LOGIT_TOLERANCE)
            compare_likeliest(comparison, key, logprobs[key], greedy.get("first_step_top5", []))


def compare_parts(comparison: Comparison, case: dict[str, Any], text: TextTokenizer) -> None:
    """What the recorded prompt is made of: its pieces, and the chunks of its recordings; then the recorded reply's."""
    name, prompt = case["name"], case["prompt_token_ids"]
    pieces = [text.encode(one) if isinstance(one, str) else one["token_ids"] for one in case["tokenized_pieces"]]
    comparison.same(f"{name}: pieces", [token for piece in pieces for token in piece], prompt)
    starts = [place + 1 for place, token in enumerate(prompt) if token == text.vocabulary.audio_start]
    ours = [
        {"file": file, "chunk": index, "start_sample": index * CHUNK_SAMPLES, "samples": samples,
         "mel_frames": mel_frames(samples), "audio_tokens": placeholders(mel_frames(samples))}
        for file in (chunk["file"] for chunk in case["audio_chunks"] if chunk["chunk"] == 0)
        for index, samples in enumerate(chunk_lengths(soundfile.info(comparison.folder / "audio" / file).frames))
    ]  # fmt: skip
    placed = [{**chunk, "first_patch_position": start} for chunk, start in zip(ours, starts, strict=False)]
    comparison.same(f"{name}: chunks", placed, case["audio_chunks"])
    reply = split_ids(text, prompt, case["greedy"]["token_ids"])
    comparison.same(f"{name}: split", reply, case["greedy"]["split"])


def compare_reply(comparison: Comparison, key: str, ours: dict[str, Any], greedy: dict[str, Any]) -> None:
    """Greedy ids, and how far each was ahead of the next likeliest."""
    comparison.same(f"{key}: greedy ids", ours["token_ids"], greedy["token_ids"])
    gaps = torch.tensor(greedy["logit_gaps"])
    comparison.close(f"{key}: logit gaps", torch.tensor(ours["logit_gaps"]), gaps, LOGIT_TOLERANCE)


def compare_likeliest(comparison: Comparison, key: str, logprobs: Tensor, recorded: list[tuple[int, float]]) -> None:
    """The ids that the recording calls likeliest, and how far they lie below the first of them."""
    if not recorded:
        return
    values, ids = logprobs.topk(len(recorded))
    comparison.same(f"{key}: likeliest ids", ids.tolist(), [token for token, _ in recorded])
    logits = torch.tensor([logit for _, logit in recorded])
    comparison.close(f"{key}: likeliest logits", values - values[0], logits - logits[0], LOGIT_TOLERANCE)


def compare_chat_prompt(comparison: Comparison, case: dict[str, Any], ours: list[int]) -> None:
    """The ids of the case's chat request. A server may tokenize the text between two items in one go."""
    joined = case.get("prompt_token_ids_joined")
    recorded = joined if ours == joined else case["prompt_token_ids"]
    comparison.same(f"{case['name']}: prompt ids of the request", ours, recorded)


@torch.inference_mode()
def compare_embeddings(comparison: Comparison) -> None:
    """Adaptor rows of every chunk of every recording, each chunk alone."""
    folder = comparison.folder / "checkpoint"
    config = StepAudio2Config(**json.loads((folder / "config.json").read_text(encoding="utf-8")))
    tensors: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(file)
    encoder, adapter = build(config.audio_encoder_config, tensors)
    recorded = comparison.load("audio_embeds.safetensors")
    for file in sorted({name.rpartition(".")[0] for name in recorded}):
        waveform, _ = soundfile.read(comparison.folder / "audio" / file, dtype="float32")
        mels, frames = clip_features(torch.from_numpy(waveform))
        for i, rows in enumerate(embed_chunks(encoder, adapter, mels.split(frames))):
            comparison.close(f"audio_embeds {file}.{i}", rows, recorded[f"{file}.{i}"], EMBEDDING_TOLERANCE)


def run_in_vllm(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What llm_in_vllm.py writes: ids and gaps of every case, and log-probabilities.

    Raises:
        ValueError: vLLM failed; carries the first error that it wrote.
    """
    script = Path(__file__).with_name("llm_in_vllm.py")
    # a function is sent to the worker, which vLLM allows only when told so; both ends are ours
    environment = {**os.environ, **VLLM_ENVIRONMENT, "VLLM_ALLOW_INSECURE_SERIALIZATION": "1"}
    with tempfile.TemporaryDirectory() as out:
        run = subprocess.run(
            [sys.executable, str(script), str(folder.resolve()), out],
            env=environment, capture_output=True, text=True, errors="replace", check=False, timeout=900,
        )  # fmt: skip
        if run.returncode != 0:
            raise ValueError(f"vLLM failed: {first_error(run.stdout + run.stderr)} (all of it: {script} FOLDER OUT)")
        answers = json.loads((Path(out) / "answers.json").read_text(encoding="utf-8"))
        return answers, load_file(Path(out) / "logprobs.safetensors")


def first_error(output: str) -> str:
    """The line that says why; what follows it in vLLM's output are the processes that then fail too."""
    errors = [line for line in output.splitlines() if re.search(r"\b\w+Error: ", line)]
    return re.sub(r"^.*?(?=\b\w+Error: )", "", errors[0]) if errors else f"no error in its output\n{output[-1000:]}"
