"""On one GPU vLLM gets what token2wav leaves, and what cannot fit is refused before anything starts."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from gpu_machines import H100, H100_BYTES, gpu_machine, gpu_plan, value
from vox_serve.engine_memory import WORK_BYTES

from sidecar.errors import SettingsError
from sidecar.memory import CONTEXT_BYTES, GRAPHS_BYTES

SHARE, KEYS_VALUES = "--gpu-memory-utilization", "--kv-cache-memory-bytes"
LM_BYTES, TOKEN_BYTES, STREAM_BYTES = 16_600_000_000, 57_344, 124_541_148
#: Flow, vocoder, the default voice, the other voices, one of 30 s while it is opened, and what was measured.
BESIDE_STREAMS = 311_604_704 + 83_226_228 + 304_041_984 + 4_000_000_000 + 3_013_632_000 + CONTEXT_BYTES + GRAPHS_BYTES


def memory_of(*argv: str) -> tuple[float, int]:
    engine = gpu_plan(*argv).engine.argv
    return float(value(engine, SHARE)), int(value(engine, KEYS_VALUES))


def test_keys_and_values_get_what_is_left() -> None:
    _, keys_values = memory_of("--max-batch-size", "128")
    assert keys_values == H100_BYTES - LM_BYTES - WORK_BYTES - BESIDE_STREAMS - 128 * STREAM_BYTES


def test_keys_and_values_get_no_more_than_all_streams_can_fill() -> None:
    _, keys_values = memory_of("--max-batch-size", "10", "--max-model-len", "2000")
    assert keys_values == (10 * 2000 + 16) * TOKEN_BYTES


@pytest.mark.parametrize("streams", ["1", "64", "280"])
def test_vllm_finds_the_share_it_is_told_to_check_for_beside_a_loaded_token2wav(streams: str) -> None:
    share, keys_values = memory_of("--max-batch-size", streams)
    free = H100_BYTES - BESIDE_STREAMS - int(streams) * STREAM_BYTES
    assert LM_BYTES + keys_values - 0.01 * H100_BYTES < share * H100_BYTES < free


def test_the_weights_count_as_the_folder_has_them(tmp_path: Path) -> None:
    def keys_values() -> int:
        plan = gpu_plan("--max-batch-size", "200", model=str(tmp_path))
        return int(value(plan.engine.argv, KEYS_VALUES))

    unknown = keys_values()
    (tmp_path / "model-00001-of-00002.safetensors").write_bytes(bytes(1000))
    (tmp_path / "model-00002-of-00002.safetensors").write_bytes(bytes(500))
    by_files = keys_values()
    index = {"metadata": {"total_size": 10_000_000_000}, "weight_map": {}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    by_index = keys_values()
    assert by_files - unknown == LM_BYTES - 1500
    assert by_index - unknown == LM_BYTES - 10_000_000_000


def test_a_float32_token2wav_leaves_less() -> None:
    halves = memory_of("--max-batch-size", "150")[1]
    assert halves - memory_of("--max-batch-size", "150", "--dtype", "float32")[1] > 150 * 0.99 * STREAM_BYTES


def test_voices_that_may_take_less_leave_more() -> None:
    more = memory_of("--max-batch-size", "150", "--voice-memory-mb", "2500")[1]
    assert more - memory_of("--max-batch-size", "150")[1] == 1_500_000_000


def test_a_setting_that_does_not_fit_is_refused_with_what_would() -> None:
    with pytest.raises(SettingsError) as refused:
        gpu_plan("--max-batch-size", "512")
    words = refused.value.message
    assert "--max-batch-size 512 needs 93.8 GB" in words
    (most,) = map(int, re.findall(r"at most (\d+) fit", words))
    gpu_plan("--max-batch-size", str(most))
    with pytest.raises(SettingsError):
        gpu_plan("--max-batch-size", str(most + 1))


def test_a_context_too_long_for_the_rest_counts_in_what_would_fit() -> None:
    long = ["--max-model-len", "500000"]
    with pytest.raises(SettingsError) as refused:
        gpu_plan("--max-batch-size", "256", *long)
    (most,) = map(int, re.findall(r"at most (\d+) fit", refused.value.message))
    gpu_plan("--max-batch-size", str(most), *long)
    with pytest.raises(SettingsError):
        gpu_plan("--max-batch-size", str(most + 1), *long)


def test_a_gpu_too_small_for_one_stream_is_refused_with_what_to_lower() -> None:
    small = gpu_machine("24564, 300, [N/A]")
    with pytest.raises(SettingsError, match=r"not one stream fits, not even with --voice-memory-mb 0; .* quantized"):
        gpu_plan("--max-batch-size", "1", on=small)


def test_a_refusal_says_how_many_streams_there_are_with_fewer_voices() -> None:
    card = gpu_machine("32607, 500, [N/A]")
    with pytest.raises(SettingsError) as refused:
        gpu_plan(on=card)
    usual, least = map(int, re.findall(r"at most (\d+) fit, but (\d+) with", refused.value.message)[0])
    for most, voices in ((usual, []), (least, ["--voice-memory-mb", "0"])):
        gpu_plan("--max-batch-size", str(most), *voices, on=card)
        with pytest.raises(SettingsError):
            gpu_plan("--max-batch-size", str(most + 1), *voices, on=card)


def test_a_share_that_leaves_token2wav_too_little_is_refused_with_what_fits() -> None:
    gpu_plan("--gpu-memory-utilization", "0.8")
    with pytest.raises(SettingsError, match=r"8\.5 GB is what --gpu-memory-utilization 0\.9 leaves; at most \d+ fit"):
        gpu_plan("--gpu-memory-utilization", "0.9")


@pytest.mark.parametrize("given", [["--gpu_memory_utilization", "0.55"], ["--gpu-memory-utilization", "0.55"]])
def test_the_user_s_own_share_stands_alone(given: list[str]) -> None:
    engine = gpu_plan(*given).engine.argv
    assert value(engine, SHARE) == "0.55"
    assert KEYS_VALUES not in engine


@pytest.mark.parametrize(
    "theirs",
    [["--gpu_memory_utilization=0.5"], ["--gpu-memory-utilization", "0.5"], ["--device-memory-utilization=0.5"]],
)
def test_a_share_for_vllm_itself_is_not_contradicted(theirs: list[str]) -> None:
    engine = gpu_plan("--max-batch-size", "512", "--", *theirs).engine.argv
    assert sum("memory" in word for word in engine) == 1


def test_bytes_for_vllm_itself_stay_and_get_a_share_that_lets_it_start() -> None:
    engine = gpu_plan("--", "--kv_cache_memory_bytes=1000000000").engine.argv
    assert KEYS_VALUES not in engine
    assert float(value(engine, SHARE)) == 0.1


@pytest.mark.parametrize("card", ["[N/A], [N/A], [N/A]", "81559, 551, Enabled"])
def test_a_gpu_of_unknown_memory_is_not_guessed_at(card: str) -> None:
    unknown = gpu_machine(card)
    with pytest.raises(SettingsError, match="give --gpu-memory-utilization"):
        gpu_plan(on=unknown)
    assert value(gpu_plan("--gpu-memory-utilization", "0.5", on=unknown).engine.argv, SHARE) == "0.5"


def test_the_tiny_model_needs_no_sharing_out() -> None:
    for machine in (gpu_machine("4096, 100, [N/A]"), gpu_machine("[N/A], [N/A], [N/A]")):
        engine = gpu_plan(model="tiny", on=machine).engine.argv
        assert value(engine, SHARE) == "0.1"
        assert value(engine, KEYS_VALUES) == str(64 * 2**20)


def test_a_gpu_of_its_own_gives_vllm_its_usual_share() -> None:
    engine = gpu_plan("--token2wav-device", "cuda:1", on=gpu_machine(H100, H100)).engine.argv
    assert value(engine, SHARE) == "0.9"
    assert KEYS_VALUES not in engine


def test_token2wav_too_large_for_its_own_gpu_is_refused_with_what_fits() -> None:
    machine = gpu_machine(H100, "24564, 300, [N/A]")
    with pytest.raises(SettingsError, match=r"--max-batch-size 256 needs 31\.9 GB") as refused:
        gpu_plan("--token2wav-device", "cuda:1", "--max-batch-size", "256", on=machine)
    (most,) = map(int, re.findall(r"at most (\d+) fit", refused.value.message))
    gpu_plan("--token2wav-device", "cuda:1", "--max-batch-size", str(most), on=machine)
    with pytest.raises(SettingsError):
        gpu_plan("--token2wav-device", "cuda:1", "--max-batch-size", str(most + 1), on=machine)


def test_the_sharing_out_is_said_before_anything_starts() -> None:
    plan = gpu_plan()
    token2wav, engine = plan.notes
    assert token2wav.startswith("token2wav: weights 0.4 GB, 64 streams x 125 MB = 8.0 GB, voices 4.3 GB")
    assert "weights 16.6 GB, keys and values 30.1 GB for 524304 tokens" in engine
    assert plan.text().startswith(f"# {token2wav}\n# {engine}\n")
