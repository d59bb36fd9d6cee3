"""The flow against the reference's recorded numbers (golden folder flow): whole, streamed five ways, layer by layer."""

from __future__ import annotations

import shutil
from pathlib import Path

import compare_flow
import pytest
from comparison import Comparison, Row
from golden_folders import copies, fullest
from safetensors.torch import load_file, save_file


def rows_of(folder: Path) -> list[Row]:
    assert compare_flow.recognises(folder)
    comparison = Comparison(folder)
    compare_flow.compare(comparison)
    return comparison.finish()


@pytest.mark.parametrize("folder", copies("flow"))
def test_the_flow_gives_the_recorded_numbers(folder: Path) -> None:
    rows = rows_of(folder)
    assert len(rows) > 60
    assert [str(row) for row in rows if not row.good] == []


def test_another_recorded_number_is_noticed(tmp_path: Path) -> None:
    folder = tmp_path / "a recording by another name"
    shutil.copytree(fullest("flow"), folder, copy_function=shutil.copyfile)
    folder.chmod(0o755)
    recorded = load_file(folder / "stream_small.safetensors")
    recorded["chunk1.mel"][0, 3, 2] += 1e-3
    recorded["chunk9.mel"] = recorded["chunk1.mel"].clone()
    save_file(recorded, folder / "stream_small.safetensors")
    assert [row.name for row in rows_of(folder) if not row.good] == [
        "small chunk1 mel",
        "stream_small.safetensors: chunk9.mel",
    ]
