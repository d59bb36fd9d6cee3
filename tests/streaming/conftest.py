"""The tiny checkpoint's real token2wav and its opened voice."""

from __future__ import annotations

import asyncio

import pytest
from speech_fixtures import checkpoint, token2wav, voices  # noqa: F401  pytest finds fixtures here by name

from sidecar.token2wav.state import OpenedVoice
from sidecar.voices.library import VoiceLibrary


@pytest.fixture(scope="session")
def voice(voices: VoiceLibrary) -> OpenedVoice:  # noqa: F811
    return asyncio.run(voices.default())
