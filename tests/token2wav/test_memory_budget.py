"""What is said of token2wav's memory before it is loaded is what it then takes."""

from __future__ import annotations

from dataclasses import replace
from math import prod

import pytest
import torch
from tiny_token2wav import tiny_config, tiny_token2wav, voice_of

from sidecar import memory
from sidecar.errors import SettingsError
from sidecar.memory import Token2WavMemory, stream_bytes, token2wav_memory, voice_bytes
from sidecar.settings import Settings
from sidecar.token2wav.config import FlowConfig
from sidecar.token2wav.flow import FlowNetwork
from sidecar.token2wav.gpu.slots import allocate
from sidecar.token2wav.synthetic import SIZES
from sidecar.token2wav.vocoder import Vocoder

FLOW, VOCODER = SIZES["full"]

BUDGET = Token2WavMemory(weights=400, streams=10, bytes_per_stream=100, voices=200, least_voices=80, workspaces=300)


def settings(*argv: str) -> Settings:
    return Settings.from_flags(["--model", "/m", "--device", "cuda", *argv], {})


def voice_shapes(config: FlowConfig, tokens: int) -> list[tuple[int, ...]]:
    """Keys and values of an opened voice: the encoder's before and after the upsampling, the estimator's."""
    encoder, estimator = config.encoder, config.estimator
    heads, width = encoder.attention_heads, 2 * encoder.output_size // encoder.attention_heads
    return [
        (encoder.num_blocks, 1, heads, tokens, width),
        (encoder.num_up_blocks, 1, heads, 2 * tokens, width),
        (config.steps, estimator.depth, 2, 1, estimator.num_heads, 2 * tokens, 2 * estimator.head_dim),
    ]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("most_tokens", [12, 27, 52])
def test_a_stream_is_counted_as_its_slot_is_allocated(most_tokens: int, dtype: torch.dtype) -> None:
    slots = allocate(FLOW, 2, most_tokens=most_tokens, dtype=dtype, device="meta")
    assert stream_bytes(most_tokens, dtype.itemsize) == slots.bytes_per_slot


def test_a_stream_in_half_precision_takes_at_most_125_megabytes() -> None:
    assert token2wav_memory(settings()).bytes_per_stream <= 125_000_000


def test_weights_are_counted_as_the_networks_have_them() -> None:
    with torch.device("meta"):
        networks = FlowNetwork(FLOW), Vocoder(VOCODER)
    numbers = [sum(weight.numel() for weight in network.parameters()) for network in networks]
    assert numbers == [memory.FLOW_NUMBERS, memory.VOCODER_NUMBERS]


def test_a_voice_is_counted_as_it_is_opened() -> None:
    flow = tiny_token2wav(steps=2).open_voice(voice_of(20)).flow
    opened = [flow.encoder.token_keys_values, flow.encoder.frame_keys_values, flow.estimator.keys_values]
    assert [tuple(tensor.shape) for tensor in opened] == voice_shapes(tiny_config(steps=2), 20)
    assert voice_bytes(227, 2) == 2 * sum(map(prod, voice_shapes(FLOW, 227)))


def test_precision_and_voices_change_what_is_needed() -> None:
    usual = token2wav_memory(settings())
    assert usual.voices == voice_bytes(227, 2) + 4_000_000_000
    assert token2wav_memory(settings("--voice-memory-mb", "5000")).voices - usual.voices == 1_000_000_000
    own = token2wav_memory(settings("--voice", "anna", "--voice-memory-mb", "0"))
    assert own.voices == 2 * voice_bytes(750, 2), "a recording of up to 30 s, and the one opened last"
    assert own == token2wav_memory(settings("--voice", "anna")).at_least
    exact = token2wav_memory(settings("--dtype", "float32"))
    assert exact.weights > usual.weights
    assert exact.bytes_per_stream > 1.99 * usual.bytes_per_stream


def test_what_fits_is_taken_and_what_does_not_is_refused_with_what_would() -> None:
    BUDGET.refuse_too_little(BUDGET.total)
    with pytest.raises(SettingsError, match=r"--max-batch-size 10 needs .* at most 9 fit"):
        BUDGET.refuse_too_little(BUDGET.total - 1)
    replace(BUDGET, streams=9).refuse_too_little(BUDGET.total - 1)
    with pytest.raises(SettingsError, match=r"at most 9 fit, but 11 with --voice-memory-mb 0"):
        BUDGET.refuse_too_little(BUDGET.total - 1)
    with pytest.raises(SettingsError, match=r"not one stream fits, but 2 with --voice-memory-mb 0"):
        BUDGET.refuse_too_little(999)
    with pytest.raises(SettingsError, match=r"not one stream fits, not even with --voice-memory-mb 0"):
        BUDGET.refuse_too_little(879)
    with pytest.raises(SettingsError, match=r"at most 9 fit$"):
        BUDGET.at_least.refuse_too_little(BUDGET.at_least.total - 1)


def test_a_model_of_another_size_takes_as_much_less_as_its_streams_do() -> None:
    released = token2wav_memory(settings())
    assert released.of_model(weights=released.weights, bytes_per_stream=released.bytes_per_stream) == released
    slot = allocate(SIZES["tiny"][0], 1, most_tokens=27, dtype=torch.float16, device="meta").bytes_per_slot
    tiny = released.of_model(weights=1_000_000, bytes_per_stream=slot)
    assert tiny.total < 1_500_000_000, "beside the tiny language model, it starts on a GPU of 4 GB"
    assert memory.CONTEXT_BYTES < tiny.workspaces < released.workspaces / 5


def test_the_parts_add_up() -> None:
    assert BUDGET.total == 400 + 10 * 100 + 200 + 300
    assert BUDGET.most_streams(1000, bytes_beside_each=1) == 0
    assert BUDGET.most_streams(900 + 3 * 101, bytes_beside_each=1) == 3
    words = token2wav_memory(settings("--max-batch-size", "64")).words()
    assert words.startswith("token2wav: weights 0.4 GB, 64 streams x 125 MB = 8.0 GB, voices 4.3 GB, ")
