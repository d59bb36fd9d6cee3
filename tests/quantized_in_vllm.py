"""The recorded tiny checkpoint in vLLM under a quantization; a child process of its tests.

    python tests/quantized_in_vllm.py METHOD

prints one line of JSON: the dtype of every parameter and buffer as it is computed with, and the ids that answer the
recorded question.
"""

from __future__ import annotations

import json
import sys

import soundfile
from golden_chats import AUDIO, CASES, CHECKPOINT, SPECIAL_IDS
from torch import nn


def dtypes(model: nn.Module) -> dict[str, str]:
    return {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in model.named_parameters()}


def main(method: str) -> None:
    from vllm import LLM, SamplingParams  # noqa: PLC0415 - a spawned worker imports this file again
    from vllm.inputs import TokensPrompt  # noqa: PLC0415

    llm = LLM(
        model=str(CHECKPOINT),
        quantization=method,
        dtype="bfloat16",
        enforce_eager=True,
        max_model_len=1024,
        max_num_seqs=4,
        kv_cache_memory_bytes=1 << 26,
    )
    case = CASES["speech_to_text"]
    (chunk,) = case["audio_chunks"]
    first = chunk["first_patch_position"]
    # one placeholder for the recording's whole block, from its <audio_start> to its <audio_end>
    before, after = case["prompt_token_ids"][: first - 1], case["prompt_token_ids"][first + chunk["audio_tokens"] + 1 :]
    prompt = TokensPrompt(
        prompt_token_ids=[*before, SPECIAL_IDS["<audio_patch>"], *after],
        multi_modal_data={"audio": soundfile.read(AUDIO / chunk["file"], dtype="float32")},
    )
    (answer,) = llm.generate([prompt], SamplingParams(temperature=0, max_tokens=32, ignore_eos=True), use_tqdm=False)
    assert list(answer.prompt_token_ids) == case["prompt_token_ids"], "the recording became another block"
    (names,) = llm.apply_model(dtypes)
    print(json.dumps({"dtypes": names, "token_ids": list(answer.outputs[0].token_ids)}))


if __name__ == "__main__":
    main(sys.argv[1])
