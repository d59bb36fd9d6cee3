"""Run every case of a recorded llm folder in vLLM with the plugin; a child process of compare_llm.

    python tests/golden/llm_in_vllm.py FOLDER OUT

writes OUT/answers.json (prompt and greedy ids of each case, how far the first choice was ahead of the second at each
of them, and the prompt of the same case as a chat) and OUT/logprobs.safetensors (over the whole vocabulary, after the
prompt). Prompts go in as ids, with one `<audio_patch>` where a recording stands; chats as the sidecar sends them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import soundfile
import torch
from recorded_chats import body_of, template_of
from reference_batch import use_in_worker
from safetensors.torch import save_file

from sidecar.engine.text import TextTokenizer
from step_audio_vllm.vocabulary import Vocabulary

PADDED_BATCH = ".padded_batch"
ROOM_FOR_REPLY = 64


def prompt_before_expansion(case: dict[str, Any], words: Vocabulary) -> tuple[list[int], list[str]]:
    """The recorded prompt with the blocks of each recording folded into one `<audio_patch>`, and the recordings."""
    ids: list[int] = []
    files: list[str] = []
    chunks = iter(case["audio_chunks"])
    inside = False
    for token in case["prompt_token_ids"]:
        if token == words.audio_start:
            inside = True
            chunk = next(chunks)
            if chunk["chunk"] == 0:
                files.append(chunk["file"])
                ids.append(words.audio_patch)
        elif token == words.audio_end:
            inside = False
        elif not inside:
            ids.append(token)
    return ids, files


class Engine:
    """vLLM on one checkpoint, float32, nothing kept between prompts."""

    def __init__(self, folder: Path, cases: list[dict[str, Any]]) -> None:
        from vllm import LLM  # noqa: PLC0415

        self.audio = folder / "audio"
        self.text = TextTokenizer.from_folder(folder / "checkpoint")
        self.llm = LLM(
            model=str(folder / "checkpoint"),
            dtype="float32",
            enforce_eager=True,
            max_model_len=max(len(case["prompt_token_ids"]) for case in cases) + ROOM_FOR_REPLY,
            max_num_seqs=4,
            kv_cache_memory_bytes=1 << 28,
            max_logprobs=-1,
            enable_prefix_caching=False,
            mm_processor_cache_gb=0,
        )

    def run(self, case: dict[str, Any], name: str) -> tuple[dict[str, list[Any]], torch.Tensor]:
        """Prompt ids as vLLM expanded them, greedy ids and their leads, and the first step's log-probabilities (V,)."""
        from vllm import SamplingParams  # noqa: PLC0415
        from vllm.inputs import TokensPrompt  # noqa: PLC0415

        ids, files = prompt_before_expansion(case, self.text.vocabulary)
        prompt = TokensPrompt(prompt_token_ids=ids)
        if files:
            prompt["multi_modal_data"] = {
                "audio": [soundfile.read(self.audio / file, dtype="float32") for file in files]
            }
            # by name and not by content: the engine may keep a recording's embeddings
            prompt["multi_modal_uuids"] = {"audio": [f"{name}-{i}" for i in range(len(files))]}
        steps = len(case["greedy"]["token_ids"])
        greedy = SamplingParams(temperature=0, max_tokens=steps, ignore_eos=True, detokenize=False, logprobs=2)
        first = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True, detokenize=False, logprobs=-1)
        (answer,) = self.llm.generate([prompt], greedy, use_tqdm=False)
        (opening,) = self.llm.generate([prompt], first, use_tqdm=False)
        by_id = opening.outputs[0].logprobs[0]
        logprobs = torch.full((max(by_id) + 1,), float("nan"))
        logprobs[list(by_id)] = torch.tensor([entry.logprob for entry in by_id.values()])
        return {
            "prompt_token_ids": list(answer.prompt_token_ids),
            "token_ids": list(answer.outputs[0].token_ids),
            "logit_gaps": [lead(step) for step in answer.outputs[0].logprobs],
        }, logprobs

    def chat_prompt_ids(self, case: dict[str, Any]) -> list[int]:
        """The prompt that the case's chat request becomes."""
        from vllm import SamplingParams  # noqa: PLC0415

        body = body_of(case, self.audio, self.text)
        (answer,) = self.llm.chat(
            body.pop("messages"),
            SamplingParams(temperature=0, max_tokens=1, detokenize=False),
            use_tqdm=False,
            chat_template=template_of(case).read_text(encoding="utf-8"),
            chat_template_content_format="openai",
            **body,
        )
        return list(answer.prompt_token_ids)


def lead(step: dict[int, Any]) -> float:
    """How far the likeliest id is ahead of the next, the same in log-probabilities as in logits."""
    first, second, *_ = sorted((entry.logprob for entry in step.values()), reverse=True)
    return float(first - second)


def main(folder: Path, out: Path) -> None:
    cases = json.loads((folder / "cases.json").read_text(encoding="utf-8"))["cases"]
    engine = Engine(folder, cases)
    answers: dict[str, dict[str, list[Any]]] = {}
    logprobs: dict[str, torch.Tensor] = {}
    for case in cases:
        answers[case["name"]], logprobs[case["name"]] = engine.run(case, case["name"])
        answers[case["name"]]["chat_prompt_token_ids"] = engine.chat_prompt_ids(case)
    padded = [case for case in cases if "greedy_padded_batch" in case]
    if padded:
        engine.llm.apply_model(use_in_worker)
    for case in padded:
        name = case["name"] + PADDED_BATCH
        answers[name], logprobs[name] = engine.run(case, name)
    (out / "answers.json").write_text(json.dumps(answers), encoding="utf-8")
    save_file(logprobs, out / "logprobs.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
