"""Fixtures of tests that speak: one server for all that can share it, the tiny checkpoint behind a scripted engine."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from speech_parts import FaultyToken2Wav, GatedEngine, spoken_reply, write_tiny_checkpoint
from speech_server import SpeechServer, speech_server, wait_until

from sidecar.__main__ import STALLED_AFTER_S
from sidecar.engine.text import TextTokenizer
from sidecar.settings import Settings
from sidecar.token2wav.token2wav import Token2Wav
from sidecar.voices.library import VoiceLibrary

WORDS = "Good morning."
SPEECH_TOKENS = 40

StartServer = Callable[..., AbstractContextManager[SpeechServer]]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def token2wav(checkpoint: Path) -> FaultyToken2Wav:
    return FaultyToken2Wav(Token2Wav.from_folder(checkpoint / "token2wav"))


@pytest.fixture(scope="session")
def voices(token2wav: FaultyToken2Wav, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> VoiceLibrary:
    return VoiceLibrary(token2wav, checkpoint, cache_dir=tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def text(checkpoint: Path) -> TextTokenizer:
    return TextTokenizer.from_folder(checkpoint)


@pytest.fixture(scope="session")
def reply(text: TextTokenizer) -> list[int]:
    """1.6 s of speech in three chunks of 8, 12 and 20 tokens."""
    return spoken_reply(text, WORDS, SPEECH_TOKENS)


@pytest.fixture(scope="session")
def start_server(checkpoint: Path, token2wav: FaultyToken2Wav, voices: VoiceLibrary, reply: list[int]) -> StartServer:
    """Starts a server of one's own with other settings; the loaded parts are shared."""

    def start(*, stalled_after_s: float = STALLED_AFTER_S, **settings: Any) -> AbstractContextManager[SpeechServer]:
        made = replace(Settings(model=checkpoint), **settings)
        parts = {"token2wav": token2wav, "voices": voices}
        return speech_server(made, GatedEngine(reply), stalled_after_s=stalled_after_s, **parts)

    return start


@pytest.fixture(scope="session")
def shared_server(start_server: StartServer) -> Iterator[SpeechServer]:
    with start_server() as server:
        yield server


@pytest.fixture
def server(shared_server: SpeechServer, reply: list[int]) -> Iterator[SpeechServer]:
    """The shared server with nothing running, its engine as at the start."""
    engine = shared_server.engine
    assert isinstance(engine, GatedEngine)
    engine.reset(reply)
    yield shared_server
    engine.hold_at, engine.hold_acceptance = None, False
    wait_until(lambda: shared_server.streams_running == 0, within_s=20)


@pytest.fixture
def engine(server: SpeechServer) -> GatedEngine:
    assert isinstance(server.engine, GatedEngine)
    return server.engine


@pytest.fixture(scope="session")
def recording() -> bytes:
    """Half a second of a tone as a wav file, 22.05 kHz stereo."""
    tone = np.sin(np.arange(11025) * 0.1).astype(np.float32) * 0.3
    file = io.BytesIO()
    soundfile.write(file, np.stack([tone, -tone], axis=1), 22050, format="WAV")
    return file.getvalue()
