"""A recording -> an opened voice: its features, from the cache where they are there, fed to token2wav."""

from __future__ import annotations

import logging
import time
from functools import cached_property
from pathlib import Path
from typing import Protocol

from sidecar.token2wav.state import OpenedVoice, VoiceFeatures
from sidecar.voices.feature_cache import FeatureCache
from sidecar.voices.features import VoiceExtractor, networks_sha256
from sidecar.voices.recording import VoiceRecording

log = logging.getLogger(__name__)


class VoiceOpener(Protocol):
    """What a build needs of token2wav."""

    def open_voice(self, features: VoiceFeatures) -> OpenedVoice: ...


class VoiceBuilder:
    """Computes, reads and writes, so it takes a thread.

    The networks are loaded for each recording that is new, and let go again: they are large beside the few moments
    that they are needed.

    Args:
        token2wav_dir: MODEL/token2wav, which holds the two networks.
        cache_dir: for features.
    """

    def __init__(self, token2wav: VoiceOpener, token2wav_dir: Path, cache_dir: Path) -> None:
        self._token2wav = token2wav
        self._token2wav_dir = token2wav_dir
        self._cache_dir = cache_dir

    def build(self, recording: VoiceRecording) -> OpenedVoice:
        """
        Raises:
            UnsupportedMedia, UnusableAudio: the recording cannot be a voice.
            CheckpointError: a network is missing or broken.
            SynthesisFailed: the features do not fit the model.
        """
        started = time.perf_counter()
        features = self._cache.load(recording.sha256)
        cached = features is not None
        if features is None:
            features = self._extract(recording)
            self._cache.store(recording.sha256, features)
        extracted = time.perf_counter()
        opened = self._token2wav.open_voice(features)
        log.info(
            "voice built: features_ms=%.0f cached=%s open_ms=%.0f prompt_tokens=%d",
            1000 * (extracted - started),
            cached,
            1000 * (time.perf_counter() - extracted),
            len(features.prompt_tokens),
        )
        return opened

    def forget(self, recording: str) -> None:
        """Nothing of the recording with this sha256 stays on disk."""
        self._cache.remove(recording)

    @cached_property
    def _cache(self) -> FeatureCache:
        return FeatureCache(self._cache_dir, networks_sha256(self._token2wav_dir))

    def _extract(self, recording: VoiceRecording) -> VoiceFeatures:
        sound = recording.decoded()
        return VoiceExtractor.from_folder(self._token2wav_dir).features(sound.samples, sound.sample_rate_hz)
