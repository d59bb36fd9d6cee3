"""Machines with GPUs, and the plans for them: what nvidia-smi would say is written here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from vox_serve.flags import parse_flags
from vox_serve.gpus import visible
from vox_serve.machine import Machine
from vox_serve.plan import Plan, make_plan

H100 = "81559, 551, Disabled"
H100_BYTES = (81559 - 551) * 2**20


def gpu_machine(*cards: str, environment: Mapping[str, str] | None = None, has_mps: bool = True) -> Machine:
    environment = environment or {}
    listing = "\n".join(f"{number}, GPU-{number}abc, {card}" for number, card in enumerate(cards or (H100,)))
    return Machine(
        has_gpu=True,
        vllm="vllm",
        cores=16,
        environment=environment,
        cache_folder=Path("/cache"),
        gpus=visible(environment.get("CUDA_VISIBLE_DEVICES"), listing),
        has_mps=has_mps,
    )


def gpu_plan(*argv: str, on: Machine | None = None, model: str = "a/b") -> Plan:
    return make_plan(parse_flags(["--model", model, *argv], {}), on or gpu_machine(), engine_key="")


def value(words: tuple[str, ...], flag: str) -> str:
    assert words.count(flag) == 1, f"{flag} is there {words.count(flag)} times in {words}"
    return words[words.index(flag) + 1]
