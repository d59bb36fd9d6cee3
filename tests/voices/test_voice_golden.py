"""Voice features against the reference's recorded numbers (golden folder voice)."""

from __future__ import annotations

from pathlib import Path

import compare_voice
import pytest
from comparison import Comparison
from golden_folders import copies


@pytest.mark.parametrize("folder", copies("voice"))
def test_voice_features_are_the_recorded_numbers(folder: Path) -> None:
    assert compare_voice.recognises(folder)
    comparison = Comparison(folder)
    compare_voice.compare(comparison)
    rows = comparison.finish()
    assert len(rows) > 20
    assert [str(row) for row in rows if not row.good] == []
