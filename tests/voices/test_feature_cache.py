"""Features on disk: they save the networks, and can never spoil a voice."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from voice_parts import CountingOpener, recording, use

from sidecar.errors import CheckpointError
from sidecar.token2wav import Token2Wav
from sidecar.token2wav.state import VoiceFeatures
from sidecar.voices import feature_cache
from sidecar.voices.build import VoiceBuilder
from sidecar.voices.feature_cache import FeatureCache
from sidecar.voices.features import VoiceExtractor
from sidecar.voices.library import VoiceLibrary
from sidecar.voices.recording import VoiceRecording

MakeLibrary = Callable[..., VoiceLibrary]

FEATURES = VoiceFeatures(
    prompt_tokens=torch.arange(25), prompt_mel=torch.linspace(-11, 2, 50 * 80).view(50, 80), speaker=torch.ones(192)
)


def test_what_was_stored_comes_back_exactly(tmp_path: Path) -> None:
    FeatureCache(tmp_path, "networks").store("recording", FEATURES)
    loaded = FeatureCache(tmp_path, "networks").load("recording")
    assert loaded is not None
    for name, tensor in vars(FEATURES).items():
        assert torch.equal(getattr(loaded, name), tensor) and getattr(loaded, name).dtype == tensor.dtype


def test_features_of_other_networks_or_recordings_are_others(tmp_path: Path) -> None:
    FeatureCache(tmp_path, "networks").store("recording", FEATURES)
    assert FeatureCache(tmp_path, "other networks").load("recording") is None
    assert FeatureCache(tmp_path, "networks").load("other recording") is None


@pytest.mark.parametrize("where", [0.0, 0.01, 0.03, 0.3, 0.9, 0.9999])
@pytest.mark.parametrize("damage", ["cut off", "one bit"])
def test_a_damaged_file_is_as_good_as_none(tmp_path: Path, where: float, damage: str) -> None:
    cache = FeatureCache(tmp_path, "networks")
    cache.store("recording", FEATURES)
    (file,) = tmp_path.iterdir()
    data = bytearray(file.read_bytes())
    position = int(where * len(data))
    if damage == "cut off":
        del data[position:]
    else:
        data[position] ^= 1
    file.write_bytes(data)
    assert cache.load("recording") is None


def test_only_ones_own_files_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cache = FeatureCache(tmp_path / "features", "networks")
    cache.store("recording", FEATURES)
    assert (tmp_path / "features").stat().st_mode & 0o777 == 0o700
    monkeypatch.setattr(os, "geteuid", lambda: (tmp_path / "features").stat().st_uid + 1)
    assert cache.load("recording") is None
    assert "belongs to another user" in caplog.text


def test_the_oldest_files_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_cache, "MAX_FILES", 3)
    cache = FeatureCache(tmp_path, "networks")
    for number in range(5):
        cache.store(f"recording {number}", FEATURES)
        (newest,) = (file for file in tmp_path.iterdir() if file.stat().st_mtime > 1000)
        os.utime(newest, (number, number))
    assert [cache.load(f"recording {number}") is not None for number in range(5)] == [False, False, True, True, True]


def test_a_second_server_needs_no_networks_for_a_known_recording(
    opener: CountingOpener, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = VoiceBuilder(opener, model / "token2wav", tmp_path).build(VoiceRecording(recording()))
    monkeypatch.setattr(VoiceExtractor, "from_folder", lambda folder: pytest.fail("the networks were loaded"))
    second = VoiceBuilder(opener, model / "token2wav", tmp_path).build(VoiceRecording(recording()))
    assert torch.equal(first.flow.estimator.keys_values, second.flow.estimator.keys_values)


def test_another_tokenizer_makes_other_features(bare: Path, opener: CountingOpener, tmp_path: Path) -> None:
    VoiceBuilder(opener, bare / "token2wav", tmp_path).build(VoiceRecording(recording()))
    shutil.copy(bare / "token2wav" / "campplus.onnx", bare / "token2wav" / "speech_tokenizer_v2_25hz.onnx")
    with pytest.raises(CheckpointError, match="has 1 inputs"):
        VoiceBuilder(opener, bare / "token2wav", tmp_path).build(VoiceRecording(recording()))


def test_a_damaged_cache_is_mended(make_library: MakeLibrary, tmp_path: Path) -> None:
    use(make_library(), VoiceLibrary.default)
    (file,) = (tmp_path / "cache" / "features").iterdir()
    whole = file.read_bytes()
    file.write_bytes(b"rubbish")
    use(make_library(), VoiceLibrary.default)
    assert file.read_bytes() == whole


def test_a_cache_that_cannot_be_written_costs_no_voice(
    make_library: MakeLibrary, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").touch()
    assert use(make_library(), VoiceLibrary.default)
    assert "features cannot be kept" in caplog.text


def test_cached_features_give_the_sound_that_fresh_ones_give(token2wav: Token2Wav, make_library: MakeLibrary) -> None:
    def speak() -> torch.Tensor:
        stream = token2wav.start(use(make_library(), VoiceLibrary.default), seed=3)
        return token2wav.step(torch.arange(1, 20)[None], [stream], last=True)[0]

    assert torch.equal(speak(), speak())
