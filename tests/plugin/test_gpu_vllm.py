"""vLLM on a GPU, with what is on by default there: compiled, in CUDA graphs, caching prefixes, on its newer runner.

In float32 with nothing rounded to TF32, a GPU repeats the recorded ids exactly; what bfloat16 answers is compared
where the recording leaves no doubt.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import peft_adapter
import pytest
import torch
from golden_chats import CASES, CHAT_CASES, CHECKPOINT, about, answer, recorded_ids, recorded_request
from hostile_recordings import ANSWERED, NOT_FINITE
from vllm_environment import VLLM_ENVIRONMENT
from vllm_metrics import metric
from vllm_server import VllmServer, serving

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.vllm,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]

TESTS = Path(__file__).parents[1]
#: The recorded question has 44 placeholders: no step can compute them together, and a cached prefix ends among them.
STEP_TOKENS, BLOCK_TOKENS = 32, 16
ARGUMENTS = ("--max-model-len", "2048", "--max-num-seqs", "8", "--kv-cache-memory-bytes", str(1 << 28))
#: How far logits move in bfloat16 is several units of some 30 standard deviation.
SURE_IN_BFLOAT16 = 20.0


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmServer]:
    cut = ["--enable-chunked-prefill", "--max-num-batched-tokens", str(STEP_TOKENS)]
    cached = ["--enable-prefix-caching", "--block-size", str(BLOCK_TOKENS)]
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("NVIDIA_TF32_OVERRIDE", "0")
        environment.setenv("TRITON_F32_DEFAULT", "ieee")
        with serving(
            CHECKPOINT, "--dtype", "float32", *cut, *cached, arguments=ARGUMENTS, ready_within_s=500
        ) as server:
            yield server


@pytest.mark.parametrize("name", CHAT_CASES)
def test_the_recorded_ids_come_out_in_float32(name: str, exact: VllmServer) -> None:
    assert answer(exact, recorded_request(name)) == (CASES[name]["prompt_token_ids"], recorded_ids(name))


@pytest.mark.parametrize("name", CHAT_CASES)
def test_the_first_logits_are_the_recorded_ones_in_float32(name: str, exact: VllmServer) -> None:
    response = exact.chat({**recorded_request(name), "max_tokens": 1, "logprobs": True, "top_logprobs": 5})
    assert response.status_code == 200, response.text
    (step,) = response.json()["choices"][0]["logprobs"]["content"]
    recorded = [logit for _, logit in CASES[name]["greedy"]["first_step_top5"]]
    found = [entry["logprob"] for entry in step["top_logprobs"]]
    for logprob, logit in zip(found, recorded, strict=True):
        assert logprob - found[0] == pytest.approx(logit - recorded[0], abs=2e-2)


def test_the_newer_runner_ran_compiled_in_graphs_and_cut_the_recording(exact: VllmServer) -> None:
    log = exact.log.read_text(errors="replace")
    for line in ("Using V2 Model Runner", "torch.compile took", "Graph capturing finished"):
        assert line in log, line
    assert f"max_num_batched_tokens={STEP_TOKENS}" in log


def test_a_recording_sent_again_is_taken_from_the_cache_up_to_the_middle_of_its_block(exact: VllmServer) -> None:
    request = recorded_request("speech_to_text", cache_salt="asked twice")
    before = metric(exact, "vllm:prefix_cache_hits_total")
    assert [answer(exact, request)[1] for _ in range(2)] == [recorded_ids("speech_to_text")] * 2
    assert metric(exact, "vllm:prefix_cache_hits_total") - before == 4 * BLOCK_TOKENS


def test_answers_are_the_same_alone_and_together(exact: VllmServer) -> None:
    requests = [recorded_request(name, cache_salt="together") for name in CHAT_CASES]
    with ThreadPoolExecutor(len(requests)) as pool:
        together = list(pool.map(lambda request: answer(exact, request)[1], requests))
    assert together == [recorded_ids(name) for name in CHAT_CASES]


@pytest.mark.parametrize("kind", NOT_FINITE)
def test_sound_that_is_not_finite_harms_nobody(kind: str, exact: VllmServer) -> None:
    refused = exact.chat(about(NOT_FINITE[kind]))
    assert refused.status_code == 400, refused.text
    assert answer(exact, recorded_request("speech_to_text", cache_salt=kind))[1] == recorded_ids("speech_to_text")


@pytest.mark.parametrize("kind", ANSWERED)
def test_odd_sound_is_answered_and_harms_nobody(kind: str, exact: VllmServer) -> None:
    assert len(answer(exact, about(ANSWERED[kind]))[1]) == 16
    assert answer(exact, recorded_request("speech_to_text", cache_salt=kind))[1] == recorded_ids("speech_to_text")


# as people serve it


#: Where the first recorded id is ahead of the second by more than bfloat16 may take away.
SURE = [name for name in CHAT_CASES if CASES[name]["greedy"]["logit_gaps"][0] > SURE_IN_BFLOAT16]


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmServer]:
    folder = tmp_path_factory.mktemp("adapters")
    weights = peft_adapter.backbone(CHECKPOINT)
    for name, scale in (("zero", 0.0), ("other", 0.02)):
        peft_adapter.write_adapter(folder / name, weights, scale=scale)
    modules = [f"{path.name}={path}" for path in folder.iterdir()]
    lora = ["--enable-lora", "--max-loras", "2", "--max-lora-rank", "8", "--lora-modules", *modules]
    with serving(CHECKPOINT, "--dtype", "bfloat16", *lora, arguments=ARGUMENTS, ready_within_s=500) as server:
        yield server


@pytest.mark.parametrize("name", SURE)
def test_bfloat16_begins_as_recorded(name: str, adapted: VllmServer) -> None:
    prompt, ids = answer(adapted, recorded_request(name))
    assert prompt == CASES[name]["prompt_token_ids"]
    assert ids[0] == recorded_ids(name)[0]


@pytest.mark.parametrize("name", ["text_chat", "speech_to_text"])
def test_an_adapter_of_zeros_changes_nothing_and_another_does(name: str, adapted: VllmServer) -> None:
    model, zero, other = (
        answer(adapted, recorded_request(name, model=asked))[1] for asked in (str(CHECKPOINT), "zero", "other")
    )
    assert zero == model != other


@pytest.mark.parametrize("method", ["fp8", "fp8_per_tensor"])
def test_fp8_quantizes_the_backbone_alone_and_answers(method: str) -> None:
    run = subprocess.run(
        [sys.executable, str(TESTS / "quantized_in_vllm.py"), method],
        env={
            **os.environ, **VLLM_ENVIRONMENT,
            "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS / "golden"), os.environ.get("PYTHONPATH", "")]),
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        },
        capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip
    if "no longer supports online" in run.stderr:
        pytest.skip("from vLLM 0.31 on, fp8 is for checkpoints that are stored so; fp8_per_tensor does what it did")
    assert run.returncode == 0, run.stderr[-6000:]
    found = json.loads(run.stdout.splitlines()[-1])
    dtypes: dict[str, str] = found["dtypes"]
    projections = [name for name in dtypes if name.endswith(("proj.weight",))]
    assert len(projections) == 2 * 4 and {dtypes[name] for name in projections} == {"float8_e4m3fn"}
    ours = [name for name in dtypes if name.startswith(("encoder.", "adapter."))]
    assert len(ours) > 20 and {dtypes[name] for name in ours} == {"bfloat16"}
    assert len(found["token_ids"]) == 32


# the encoder that serves a batch


def test_the_encoder_gives_the_same_rows_alone_and_in_a_batch_in_bfloat16() -> None:
    from step_audio_vllm.config import StepAudio2EncoderConfig  # noqa: PLC0415
    from step_audio_vllm.encoder import Adapter, AudioEncoder, embed_chunks  # noqa: PLC0415

    torch.manual_seed(0)
    config = StepAudio2EncoderConfig(n_audio_layer=4)
    encoder, adapter = AudioEncoder(config).cuda().bfloat16(), Adapter(config).cuda().bfloat16()
    chunks = [torch.randn(frames, config.n_mels, device="cuda") for frames in (3, 11, 133, 502, 1300, 2502)]
    with torch.inference_mode():
        together = embed_chunks(encoder, adapter, chunks)
        for chunk, rows in zip(chunks, together, strict=True):
            (alone,) = embed_chunks(encoder, adapter, [chunk])
            assert rows.shape == alone.shape
            if len(rows):
                noise = (rows.float() - alone.float()).square().mean() / alone.float().square().mean()
                assert 10 * math.log10(max(noise.item(), 1e-12)) < -35
