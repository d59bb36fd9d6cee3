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
from comparison import Comparison
from llm_in_vllm import PADDED_BATCH
from safetensors.torch import load_file
from torch import Tensor
from vllm_environment import VLLM_ENVIRONMENT

from step_audio_vllm.config import StepAudio2Config
from step_audio_vllm.encoder import embed_chunks
from step_audio_vllm.features import clip_features

LOGIT_TOLERANCE = 5e-3
EMBEDDING_TOLERANCE = 2e-5


def recognises(folder: Path) -> bool:
    return (folder / "checkpoint").is_dir() and (folder / "first_logits.safetensors").exists()


def compare(comparison: Comparison) -> None:
    compare_embeddings(comparison)
    ids, logprobs = run_in_vllm(comparison.folder)
    recorded = comparison.load("first_logits.safetensors")
    for case in comparison.json("cases.json")["cases"]:
        name = case["name"]
        compare_chat_prompt(comparison, case, ids[name]["chat_prompt_token_ids"])
        for key, greedy in ((name, case["greedy"]), (name + PADDED_BATCH, case.get("greedy_padded_batch"))):
            if greedy is None:
                continue
            comparison.same(f"{key}: prompt ids", ids[key]["prompt_token_ids"], case["prompt_token_ids"])
            comparison.same(f"{key}: greedy ids", ids[key]["token_ids"], greedy["token_ids"])
            expected = torch.log_softmax(recorded[key].double(), dim=-1)
            comparison.close(f"{key}: first logits", logprobs[key], expected, LOGIT_TOLERANCE)


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
    """Ids and log-probabilities of every case.

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
        ids = json.loads((Path(out) / "ids.json").read_text(encoding="utf-8"))
        return ids, load_file(Path(out) / "logprobs.safetensors")


def first_error(output: str) -> str:
    """The line that says why; what follows it in vLLM's output are the processes that then fail too."""
    errors = [line for line in output.splitlines() if re.search(r"\b\w+Error: ", line)]
    return re.sub(r"^.*?(?=\b\w+Error: )", "", errors[0]) if errors else f"no error in its output\n{output[-1000:]}"
