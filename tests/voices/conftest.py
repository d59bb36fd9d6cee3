"""A tiny checkpoint with a voice of its own, one without, and libraries on them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from voice_parts import CountingOpener, no_network

from sidecar.token2wav import Token2Wav
from sidecar.token2wav.synthetic import write_token2wav
from sidecar.voices.library import VoiceLibrary

MakeLibrary = Callable[..., VoiceLibrary]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    write_token2wav(folder, "tiny")
    return folder


@pytest.fixture(scope="session")
def token2wav(model: Path) -> Token2Wav:
    return Token2Wav.from_folder(model / "token2wav")


@pytest.fixture
def opener(token2wav: Token2Wav) -> CountingOpener:
    return CountingOpener(token2wav)


@pytest.fixture
def bare(model: Path, tmp_path: Path) -> Path:
    """A checkpoint that comes without a voice, as the real one does."""
    shutil.copytree(model, tmp_path / "bare", ignore=shutil.ignore_patterns("voices"))
    return tmp_path / "bare"


@pytest.fixture
def voice_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "voices"
    folder.mkdir()
    return folder


@pytest.fixture
def make_library(opener: CountingOpener, model: Path, tmp_path: Path) -> MakeLibrary:
    """Libraries that share the opener and one cache folder, without a network."""

    def make(model_dir: Path = model, **wanted: Any) -> VoiceLibrary:
        return VoiceLibrary(
            opener, model_dir, **(dict[str, Any](cache_dir=tmp_path / "cache", fetch=no_network) | wanted)
        )

    return make
