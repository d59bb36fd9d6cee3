"""What users of vLLM turn on changes speed and memory, never an answer: the recorded ids come out with each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from golden_chats import CASES, CHAT_CASES, CHECKPOINT, about, answer, recorded_ids, recorded_request
from requests_with_audio import float_wav
from vllm_metrics import metric
from vllm_server import ARGUMENTS, VllmServer, serving

pytestmark = pytest.mark.vllm

#: The smallest that a CPU's attention takes; caching is done by whole blocks.
BLOCK_TOKENS = 32
#: Below the 44 placeholders of the recorded question, so that no step can compute them together.
STEP_TOKENS = 32

NO_EAGER = tuple(argument for argument in ARGUMENTS if argument != "--enforce-eager")
FEATURES = {
    "tensor parallel": (*ARGUMENTS, "--tensor-parallel-size", "2", "--mm-processor-cache-gb", "0"),
    "chunked prefill": (
        *ARGUMENTS,
        "--enable-chunked-prefill",
        "--max-num-batched-tokens", str(STEP_TOKENS),
        "--enable-prefix-caching",
        "--block-size", str(BLOCK_TOKENS),
        "--limit-mm-per-prompt", '{"audio": 2}',
    ),
    "compiled": NO_EAGER,
}  # fmt: skip


@pytest.fixture(scope="module", params=list(FEATURES))
def featured(request: pytest.FixtureRequest) -> Iterator[VllmServer]:
    with serving(CHECKPOINT, "--dtype", "float32", arguments=FEATURES[request.param], ready_within_s=600) as server:
        yield server


def only(feature: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("featured", [feature], indirect=True, scope="module")


@pytest.mark.parametrize("name", CHAT_CASES)
def test_the_recorded_ids_come_out(featured: VllmServer, name: str) -> None:
    assert answer(featured, recorded_request(name)) == (CASES[name]["prompt_token_ids"], recorded_ids(name))


@only("tensor parallel")
def test_the_backbone_ran_on_two_ranks(featured: VllmServer) -> None:
    log = featured.log.read_text(errors="replace")
    assert "world_size=2" in log and "rank=1" in log


@only("chunked prefill")
def test_no_step_was_long_enough_for_the_block_of_a_recording(featured: VllmServer) -> None:
    assert CASES["speech_to_text"]["audio_chunks"][0]["audio_tokens"] > STEP_TOKENS
    log = featured.log.read_text(errors="replace")
    assert f"Chunked prefill is enabled with max_num_batched_tokens={STEP_TOKENS}" in log


def noise(seed: int, seconds: float = 12.0) -> bytes:
    samples = np.random.default_rng(seed).normal(0, 0.1, round(16000 * seconds))
    return float_wav(samples.astype(np.float32))


def cached_tokens(server: VllmServer, body: dict[str, Any]) -> tuple[list[int], int]:
    """Generated ids, and how many tokens of the prompt came from the prefix cache."""
    before = metric(server, "vllm:prefix_cache_hits_total")
    _, ids = answer(server, body)
    return ids, round(metric(server, "vllm:prefix_cache_hits_total") - before)


@only("chunked prefill")
def test_a_recording_sent_again_is_taken_from_the_cache_up_to_the_middle_of_its_block(featured: VllmServer) -> None:
    request = recorded_request("speech_to_text", cache_salt="asked twice")
    first, again = cached_tokens(featured, request), cached_tokens(featured, request)
    (chunk,) = CASES["speech_to_text"]["audio_chunks"]
    block = range(chunk["first_patch_position"], chunk["first_patch_position"] + chunk["audio_tokens"])
    assert first == (recorded_ids("speech_to_text"), 0)
    assert again == (recorded_ids("speech_to_text"), 2 * BLOCK_TOKENS)
    assert 2 * BLOCK_TOKENS in block, "the rest of the block has to be computed from the recording"


@only("chunked prefill")
def test_another_recording_of_the_same_length_shares_no_cached_block(featured: VllmServer) -> None:
    one, other = (about(noise(seed), cache_salt="one or other") for seed in (1, 2))
    ids, _ = cached_tokens(featured, one)
    other_ids, cached = cached_tokens(featured, other)
    assert cached == 0
    assert other_ids == answer(featured, {**other, "cache_salt": "alone"})[1] != ids
    assert cached_tokens(featured, other)[1] >= 4 * BLOCK_TOKENS, "it would have been found, had it been the same"


@only("chunked prefill")
def test_one_recording_more_than_allowed_is_a_400(featured: VllmServer) -> None:
    assert len(answer(featured, about(noise(3, 1), noise(4, 1)))[1]) == 16
    refused = featured.chat(about(noise(3, 1), noise(4, 1), noise(5, 1)))
    assert refused.status_code == 400, refused.text
    assert "2 audio" in refused.json()["error"]["message"]


@only("compiled")
def test_the_cache_of_recordings_saves_work_and_changes_nothing(featured: VllmServer) -> None:
    request = recorded_request("text_then_two_audios", cache_salt="again")
    before = metric(featured, "vllm:mm_cache_hits_total")
    for _ in range(2):
        assert answer(featured, request)[1] == recorded_ids("text_then_two_audios")
    assert metric(featured, "vllm:mm_cache_hits_total") - before >= 2


@only("compiled")
def test_the_backbone_was_compiled(featured: VllmServer) -> None:
    log = featured.log.read_text(errors="replace")
    assert "CompilationMode.NONE" not in log
    assert "Warming up model for the compilation" in log


@only("tensor parallel")
def test_a_recording_sent_again_is_answered_the_same_without_a_cache_of_recordings(featured: VllmServer) -> None:
    request = recorded_request("text_then_two_audios")
    assert [answer(featured, request)[1] for _ in range(2)] == [recorded_ids("text_then_two_audios")] * 2
    assert metric(featured, "vllm:mm_cache_hits_total") == 0
