"""Which GPUs CUDA will show a process, in its order, and how much memory each has: as nvidia-smi tells it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

VISIBLE = "CUDA_VISIBLE_DEVICES"
#: Without the last two on drivers that do not know them.
QUESTIONS = ("index,uuid,memory.total,memory.reserved,mig.mode.current", "index,uuid,memory.total")
ANSWER_S = 30
MEBIBYTE = 2**20


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU that CUDA will show.

    `name` is what CUDA_VISIBLE_DEVICES calls it; `total_bytes` of memory, None where nvidia-smi does not say.
    """

    name: str
    total_bytes: int | None


def visible_gpus(environment: Mapping[str, str]) -> tuple[Gpu, ...]:
    """Those of this machine that CUDA_VISIBLE_DEVICES leaves; empty where nvidia-smi does not answer."""
    return visible(environment.get(VISIBLE), _ask_nvidia_smi())


def visible(allowed: str | None, listing: str) -> tuple[Gpu, ...]:
    """
    Args:
        allowed: CUDA_VISIBLE_DEVICES, if it is set: numbers, or beginnings of UUIDs.
        listing: nvidia-smi's answer, a line for each GPU, as one of QUESTIONS asks.
    """
    here = [line.split(", ") for line in listing.splitlines() if line.strip()]
    if allowed is None:
        return tuple(Gpu(name=columns[0], total_bytes=_memory(columns)) for columns in here)
    return tuple(_named(allowed, here))


def _named(allowed: str, here: Sequence[Sequence[str]]) -> Iterator[Gpu]:
    for name in filter(None, (word.strip() for word in allowed.split(","))):
        found = [columns for columns in here if columns[0] == name or columns[1].startswith(name)]
        if found:
            yield Gpu(name=name, total_bytes=_memory(found[0]))
        elif name.startswith("MIG-"):  # a slice of a GPU, whose size this listing does not have
            yield Gpu(name=name, total_bytes=None)
        else:
            return  # CUDA too ends its list at the first name that is none


def _memory(columns: Sequence[str]) -> int | None:
    """What CUDA can give out; None for a GPU that is cut in slices."""
    _, _, total, reserved, slices = [*columns, "", ""][:5]
    if not total.isdigit() or slices == "Enabled":
        return None
    return (int(total) - (int(reserved) if reserved.isdigit() else 0)) * MEBIBYTE


def _ask_nvidia_smi() -> str:
    for question in QUESTIONS:
        command = ["nvidia-smi", f"--query-gpu={question}", "--format=csv,noheader,nounits"]
        with suppress(OSError, subprocess.SubprocessError):
            asked = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_S, check=False)
            if asked.returncode == 0:
                return asked.stdout
    return ""
