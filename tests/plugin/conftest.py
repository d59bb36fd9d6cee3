"""One vLLM for the whole session: the recorded tiny checkpoint, plain, in float32 on the CPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from golden_folders import DATA
from vllm_server import VllmServer, serving


@pytest.fixture(scope="session")
def golden_server() -> Iterator[VllmServer]:
    with serving(DATA / "llm" / "checkpoint", "--dtype", "float32") as server:
        yield server
