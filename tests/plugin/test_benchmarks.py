"""The benchmarks count right, and run against a real server. What they measure is not judged here."""

from __future__ import annotations

import asyncio
from pathlib import Path

import llm
import pytest
import streams
import torch
from encoder import chunk_flops, measure
from engine_process import Engine
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, Qwen2Config
from vllm_server import VllmServer

from step_audio_vllm.config import StepAudio2Config, StepAudio2EncoderConfig
from step_audio_vllm.encoder import Adapter, AudioEncoder, embed_chunks
from step_audio_vllm.synthetic import write_checkpoint

SMALL = StepAudio2EncoderConfig(n_audio_state=128, n_audio_head=2, n_audio_layer=2, llm_dim=64)


@pytest.mark.parametrize("frames", [3, 101, 800])
def test_the_counted_operations_are_those_that_run(frames: int) -> None:
    encoder, adapter = AudioEncoder(SMALL), Adapter(SMALL)
    counter = FlopCounterMode(display=False)
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), counter:
        embed_chunks(encoder, adapter, [torch.randn(frames, SMALL.n_mels)])
    # the one frame that attention hides is counted as seen
    assert counter.get_total_flops() == pytest.approx(chunk_flops(frames, SMALL), rel=0.005)


@torch.inference_mode()
def test_every_batch_of_recordings_is_timed() -> None:
    product, *batches = measure("tiny", torch.device("cpu"), repeats=1)
    assert product[3] == 1
    assert all(took > 0 and flops > 0 and times > 0 for _, took, flops, times in batches)


def test_time_a_token_counts_only_what_lies_between_the_given_times() -> None:
    arrivals = [(0.0, 1), (1.0, 2), (1.5, 18), (2.0, 34), (9.0, 35)]
    assert streams.token_ms(arrivals, first=0.5, last=2.5) == pytest.approx(1000 / 32)
    with pytest.raises(streams.Failed, match="more tokens"):
        streams.token_ms(arrivals, first=3, last=10)


def test_what_is_compared_are_turns_of_the_same_round() -> None:
    plain, ours = (
        [streams.Decode(engine_ms=ms, client_ms=ms, prompt_tokens=1) for ms in rounds]
        for rounds in ((5, 10, 20), (6, 10, 20))
    )
    assert llm.decode_cells(ours, plain) == "10.00 ± 7.00 | 10.00 | 1.000 |"


def test_plain_qwen2_gets_the_plugins_sizes_and_tokens(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "ours", "full")
    llm.write_plain_qwen2(tmp_path / "ours", tmp_path / "plain")
    plain = AutoConfig.from_pretrained(tmp_path / "plain")
    ours = StepAudio2Config.from_pretrained(tmp_path / "ours").text_config
    assert isinstance(plain, Qwen2Config) and plain.architectures == ["Qwen2ForCausalLM"]
    sizes = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_key_value_heads", "vocab_size")
    assert [getattr(plain, size) for size in sizes] == [getattr(ours, size) for size in sizes]
    assert (tmp_path / "plain/tokenizer.json").read_bytes() == (tmp_path / "ours/tokenizer.json").read_bytes()


@pytest.mark.vllm
def test_two_streams_with_a_recording_are_timed_on_a_real_server(golden_server: VllmServer) -> None:
    engine = Engine(golden_server.base_url, golden_server.model, ready_after_s=0)
    body = llm.asking(engine, llm.recording(1, seed=0), llm.TEXT, tokens=48)
    decode = asyncio.run(streams.time_decode(engine.url, body, streams=2))
    assert decode.engine_ms > 0 and decode.client_ms > 0
    assert decode.prompt_tokens > 13  # the recording's placeholders
    prefill = asyncio.run(streams.time_prefill(engine.url, [llm.asking(engine, llm.recording(2, seed=1))]))
    assert 0 < prefill.engine_ms < prefill.client_ms


@pytest.mark.vllm
def test_a_server_that_refuses_is_named(golden_server: VllmServer) -> None:
    engine = Engine(golden_server.base_url, "no such model", ready_after_s=0)
    with pytest.raises(streams.Failed, match="404"):
        asyncio.run(streams.time_prefill(engine.url, [llm.asking(engine, llm.TEXT)]))
