"""A server that speaks without a vLLM."""

from __future__ import annotations

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
