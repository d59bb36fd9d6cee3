"""Where recordings of the reference lie: a small set in the repository, the full set beside it where there is one."""

from __future__ import annotations

from pathlib import Path

import pytest

DATA = Path(__file__).parent / "golden" / "data"
_BESIDE = Path(__file__).parents[2] / "shared" / "golden"


def copies(name: str) -> list[object]:
    """Both copies of a folder as pytest parameters; the full one is skipped where it is absent."""
    full = _BESIDE / name
    skip = pytest.mark.skipif(not full.is_dir(), reason=f"no ../shared/golden/{name}")
    inside = DATA / name
    return [pytest.param(inside, id="repository")] * inside.is_dir() + [pytest.param(full, id="full", marks=skip)]


def fullest(name: str) -> Path:
    """The copy with the most in it: for checks that cost a minute and of which one is enough."""
    return _BESIDE / name if (_BESIDE / name).is_dir() else DATA / name
