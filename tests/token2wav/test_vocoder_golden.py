"""The vocoder against the reference's recorded numbers (golden folder hift)."""

from __future__ import annotations

from pathlib import Path

import compare_hift
import pytest
from comparison import Comparison
from golden_folders import copies


@pytest.mark.parametrize("folder", copies("hift"))
def test_the_vocoder_gives_the_recorded_numbers(folder: Path) -> None:
    assert compare_hift.recognises(folder)
    comparison = Comparison(folder)
    compare_hift.compare(comparison)
    rows = comparison.finish()
    assert len(rows) > 20
    assert [str(row) for row in rows if not row.good] == []
