"""Voice features on disk, by the recording they come from and the networks that made them."""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from sidecar.token2wav.state import VoiceFeatures
from sidecar.voices.whole_file import write_whole

log = logging.getLogger(__name__)

#: Raise it with every change to how features are made or written.
FORMAT = 1
#: Of 150 KB for 9 s. Recordings come and go; the oldest files go when there are more.
MAX_FILES = 2_000


class FeatureCache:
    """A cache that cannot be read or written costs time and a line in the log, never a voice.

    Args:
        folder: for the files; made when the first is written, for this user alone, since they tell who was recorded.
            Servers may share it.
        networks_sha256: of the networks that make features of recordings.
    """

    def __init__(self, folder: Path, networks_sha256: str) -> None:
        self._folder = folder
        self._networks_sha256 = networks_sha256

    def load(self, recording_sha256: str) -> VoiceFeatures | None:
        """None where there are none, or the file is damaged."""
        path = self._path(recording_sha256)
        if not path.is_file():
            return None
        try:
            if path.stat().st_uid != os.geteuid():
                raise PermissionError("it belongs to another user")
            with safe_open(path, framework="pt") as file:
                # clone: what it hands out may be a view of the file
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118  no mapping
                written = (file.metadata() or {}).get("checksum")
            features = VoiceFeatures(**tensors)
        except (SafetensorError, OSError, TypeError) as error:
            log.warning("%s cannot be used, so the voice's features are made anew: %s", path, error)
            return None
        if written != _checksum(features):
            log.warning("%s is damaged, so the voice's features are made anew: its checksum differs", path)
            return None
        return features

    def store(self, recording_sha256: str, features: VoiceFeatures) -> None:
        path = self._path(recording_sha256)
        data = save(
            {name: tensor.contiguous() for name, tensor in vars(features).items()},
            metadata={"checksum": _checksum(features)},
        )
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_whole(path, data)
            self._let_go()
        except OSError as error:
            log.warning("the voice's features cannot be kept in %s: %s", path, error)

    def remove(self, recording_sha256: str) -> None:
        try:
            self._path(recording_sha256).unlink(missing_ok=True)
        except OSError as error:
            log.warning("the voice's features stay in %s: %s", self._folder, error)

    def _let_go(self) -> None:
        files = sorted(self._folder.glob("*.safetensors"), key=lambda path: path.stat().st_mtime_ns)
        for path in files[:-MAX_FILES]:
            path.unlink(missing_ok=True)

    def _path(self, recording_sha256: str) -> Path:
        made_from = f"{FORMAT} {self._networks_sha256} {recording_sha256}"
        return self._folder / f"{hashlib.sha256(made_from.encode()).hexdigest()}.safetensors"


def _checksum(features: VoiceFeatures) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(vars(features).items()):
        assert isinstance(tensor, torch.Tensor), f"{name} is a {type(tensor).__name__}"
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()
