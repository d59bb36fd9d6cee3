"""A checkpoint folder, a recording and tokens to PCM, against the reference's (golden folder pipeline)."""

from __future__ import annotations

from pathlib import Path

import compare_pipeline
import pytest
from comparison import Comparison
from golden_folders import copies


@pytest.mark.parametrize("folder", copies("pipeline"))
def test_recording_and_tokens_become_the_recorded_sound(folder: Path) -> None:
    assert compare_pipeline.recognises(folder)
    comparison = Comparison(folder)
    compare_pipeline.compare(comparison)
    rows = comparison.finish()
    assert len(rows) > 40
    assert [str(row) for row in rows if not row.good] == []
