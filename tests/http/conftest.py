"""One vLLM for the tests of this folder that ask for it, and a server that speaks without one for the others."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from golden_folders import DATA
from speech_fixtures import (  # noqa: F401  pytest finds fixtures here by name
    checkpoint,
    engine,
    recording,
    reply,
    server,
    shared_server,
    start_server,
    text,
    token2wav,
    voices,
)
from vllm_server import VllmServer, serving


@pytest.fixture(scope="session")
def golden_server() -> Iterator[VllmServer]:
    """The recorded tiny checkpoint, plain, in float32."""
    with serving(DATA / "llm" / "checkpoint", "--dtype", "float32") as vllm:
        yield vllm
