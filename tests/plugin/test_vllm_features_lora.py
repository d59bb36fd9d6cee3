"""Fine-tuned backbones: a LoRA adapter answers as the weights merged by hand do, beside the model itself."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import peft_adapter
import pytest
import torch
from golden_chats import CASES, CHECKPOINT, answer, recorded_ids, recorded_request
from golden_folders import DATA
from safetensors.torch import load_file
from torch import Tensor
from vllm_server import VllmServer, serving

pytestmark = pytest.mark.vllm

#: Enough for another answer, and no more: the float32 of another order of operations must not change it again.
SCALE = 0.01
NAMES = ["text_chat", "speech_to_text", "text_then_two_audios"]


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters")
    weights = peft_adapter.backbone(CHECKPOINT)
    peft_adapter.write_adapter(folder / "zero", weights, scale=0)
    peft_adapter.write_adapter(folder / "other", weights, scale=SCALE)
    return folder


@pytest.fixture(scope="module")
def server(adapters: Path) -> Iterator[VllmServer]:
    lora = ["--enable-lora", "--max-loras", "2", "--max-lora-rank", "8", "--lora-modules"]
    with serving(
        CHECKPOINT, "--dtype", "float32", *lora, *(f"{path.name}={path}" for path in adapters.iterdir())
    ) as it:
        yield it


def merged_ids(name: str, adapter: Path) -> list[int]:
    """The greedy continuation by an ordinary Qwen2 in float32 with merged weights."""
    from transformers import Qwen2Config, Qwen2ForCausalLM  # noqa: PLC0415 - seconds

    text = json.loads((CHECKPOINT / "config.json").read_text(encoding="utf-8"))["text_config"]
    config = Qwen2Config(**{key: value for key, value in text.items() if key != "torch_dtype"})
    config.tie_word_embeddings = False
    model = Qwen2ForCausalLM(config).float().eval()
    model.load_state_dict(peft_adapter.merged(peft_adapter.backbone(CHECKPOINT), adapter))
    rows = prompt_rows(name, model.get_input_embeddings().weight)[None]
    ids: list[int] = []
    with torch.no_grad():
        for _ in CASES[name]["greedy"]["token_ids"]:
            ids.append(int(model(inputs_embeds=rows).logits[0, -1].argmax()))
            rows = torch.cat([rows, model.get_input_embeddings()(torch.tensor([[ids[-1]]]))], dim=1)
    return ids


def prompt_rows(name: str, table: Tensor) -> Tensor:
    """(N, H) embeddings of a recorded prompt: the table's, and the recorded ones where sound stands."""
    case, sounds = CASES[name], load_file(DATA / "llm" / "audio_embeds.safetensors")
    rows = table[case["prompt_token_ids"]].detach().clone()
    for chunk in case["audio_chunks"]:
        first = chunk["first_patch_position"]
        rows[first : first + chunk["audio_tokens"]] = sounds[f"{chunk['file']}.{chunk['chunk']}"]
    return rows


@pytest.mark.parametrize("name", NAMES)
def test_the_model_and_an_adapter_of_zeros_give_the_recorded_ids(name: str, server: VllmServer) -> None:
    assert answer(server, recorded_request(name))[1] == recorded_ids(name)
    assert answer(server, recorded_request(name, model="zero"))[1] == recorded_ids(name)


@pytest.mark.parametrize("name", NAMES)
def test_an_adapter_answers_as_the_merged_weights_do(name: str, server: VllmServer, adapters: Path) -> None:
    expected = merged_ids(name, adapters / "other")
    assert answer(server, recorded_request(name, model="other"))[1] == expected != recorded_ids(name)
