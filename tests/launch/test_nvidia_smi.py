"""What is asked of nvidia-smi, and what is made of no answer; a program in its place answers as it does."""

from __future__ import annotations

from pathlib import Path

import pytest
from vox_serve.gpus import visible_gpus

#: An older driver: what it does not know it refuses, on standard output and with an exit code.
OLD = """#!/bin/sh
case "$1" in
  --query-gpu=index,uuid,memory.total) echo "0, GPU-0abc, 24564"; echo "1, GPU-1abc, 24564" ;;
  *) echo 'Field "memory.reserved" is not a valid field to query.'; exit 2 ;;
esac
"""
NEW = """#!/bin/sh
[ "$1 $2" = "--query-gpu=index,uuid,memory.total,memory.reserved,mig.mode.current --format=csv,noheader,nounits" ] &&
  echo "0, GPU-0abc, 81559, 551, Disabled"
"""
NO_DRIVER = """#!/bin/sh
echo "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver."; exit 9
"""


@pytest.mark.parametrize(
    ("program", "allowed", "memory"),
    [
        (NEW, None, {"0": (81559 - 551) * 2**20}),
        (OLD, None, {"0": 24564 * 2**20, "1": 24564 * 2**20}),
        (OLD, "1", {"1": 24564 * 2**20}),
        (NO_DRIVER, None, {}),
        (None, None, {}),
    ],
    ids=["new", "old", "one allowed", "no driver", "no program"],
)
def test_gpus_are_what_nvidia_smi_lists(
    program: str | None,
    allowed: str | None,
    memory: dict[str, int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if program is not None:
        (tmp_path / "nvidia-smi").write_text(program)
        (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    gpus = visible_gpus({} if allowed is None else {"CUDA_VISIBLE_DEVICES": allowed})
    assert {gpu.name: gpu.total_bytes for gpu in gpus} == memory
