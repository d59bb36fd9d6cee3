"""Flags and machine -> which device each process computes on, and whether they share one GPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from sidecar.errors import SettingsError
from sidecar.settings import Settings
from vox_serve.flags import Flags
from vox_serve.gpus import VISIBLE, Gpu
from vox_serve.machine import MPS_CONTROL, Machine

#: Has CUDA number the GPUs as nvidia-smi does, and not the fastest first.
NUMBERED_ALIKE = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where both compute.

    Attributes:
        settings: the sidecar's, with the device as the sidecar will see it.
        shared: both on one GPU.
        engine_gpu, token2wav_gpu: None on a CPU, and where nobody could say what GPUs there are.
        engine_environment, sidecar_environment: show each process its own GPUs.
    """

    settings: Settings
    shared: bool = False
    engine_gpu: Gpu | None = None
    token2wav_gpu: Gpu | None = None
    engine_environment: Mapping[str, str] = field(default_factory=dict)
    sidecar_environment: Mapping[str, str] = field(default_factory=dict)


def place(flags: Flags, machine: Machine) -> Placement:
    """
    Raises:
        SettingsError: --token2wav-device names a GPU that is not there, or --mps cannot do anything here.
    """
    wanted = flags.token2wav_device or ("cuda" if machine.gpu else "cpu")
    kind, _, number = wanted.partition(":")
    placement = _placed(replace(flags.settings, device=kind), int(number or 0), machine)
    if flags.mps:
        _refuse_mps_in_vain(placement, machine)
    return placement


def _placed(settings: Settings, number: int, machine: Machine) -> Placement:
    gpus = machine.gpus
    if not machine.gpu:
        if settings.device == "cuda":
            raise SettingsError(
                "--token2wav-device is cuda, and here everything computes on the CPU: no NVIDIA GPU is visible, or "
                "vLLM's CPU build is installed; leave the flag out"
            )
        return Placement(settings=settings)
    first = gpus[0] if gpus else None
    order = NUMBERED_ALIKE if len(gpus) > 1 and "CUDA_DEVICE_ORDER" not in machine.environment else {}
    if settings.device == "cpu":
        return Placement(settings=settings, engine_gpu=first, engine_environment=order)
    if number == 0:
        return Placement(
            settings=settings, shared=True, engine_gpu=first, token2wav_gpu=first,
            engine_environment=order, sidecar_environment=order,
        )  # fmt: skip
    if number >= len(gpus):
        raise SettingsError(
            f"--token2wav-device is cuda:{number}, and nvidia-smi and CUDA_VISIBLE_DEVICES leave "
            f"{len(gpus)} GPU{'' if len(gpus) == 1 else 's'}, numbered from 0; name another, or cuda to share the first"
        )
    # each is shown its own alone: torch keeps half a gigabyte on a GPU that it only looks at
    others = ",".join(gpu.name for gpu in gpus if gpu is not gpus[number])
    return Placement(
        settings=settings, engine_gpu=first, token2wav_gpu=gpus[number],
        engine_environment={VISIBLE: others, **order}, sidecar_environment={VISIBLE: gpus[number].name, **order},
    )  # fmt: skip


def _refuse_mps_in_vain(placement: Placement, machine: Machine) -> None:
    if not placement.shared:
        raise SettingsError("--mps lets two processes compute on one GPU at once, and here they do not share one")
    if not machine.has_mps:
        raise SettingsError(
            f"--mps needs NVIDIA's {MPS_CONTROL}, which is not on the PATH; install it with the driver, or leave the "
            "flag out"
        )
