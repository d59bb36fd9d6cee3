"""Where the default voice's recording is: named, in the checkpoint, or fetched once."""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import httpx

from sidecar.errors import SettingsError

log = logging.getLogger(__name__)

#: The model authors' own default voice; the checkpoint on the hub comes without it.
AUTHORS_URL = "https://raw.githubusercontent.com/stepfun-ai/Step-Audio2/main/assets/default_female.wav"
AUTHORS_SHA256 = "5fc92ddcd9bc9af10437d9630642378777a98fc260f16508a9777db12c830a41"
FETCH_TIMEOUT_S = 30.0

_WHAT_TO_PASS = "pass --voice FILE or set STEP_AUDIO_VOICE=FILE, a recording of 1 to 30 s"

Fetch = Callable[[str], bytes]


def find_default_recording(model_dir: Path, *, voice: Path | None, cache_dir: Path, fetch: Fetch) -> Path:
    """The first that exists; `voice`, where given, is the only one asked for.

    Raises:
        SettingsError: there is none, and it cannot be fetched; says what to pass.
    """
    if voice is not None:
        if not voice.is_file():
            raise SettingsError(f"--voice {voice}: no such file; pass a recording of 1 to 30 s")
        return voice
    in_model = model_dir / "token2wav" / "voices"
    places = [in_model / "default.wav", in_model / "default_female.wav", model_dir / "assets" / "default_female.wav"]
    found = next((path for path in places if path.is_file()), None)
    return found or _fetched_once(cache_dir / "default_female.wav", fetch)


def user_cache_dir() -> Path:
    """Where fetched voices are kept: under XDG_CACHE_HOME, or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "step-audio-serve" / "voices"


def fetch_url(url: str) -> bytes:
    """The bytes at `url`; raises httpx.HTTPError."""
    return httpx.get(url, timeout=FETCH_TIMEOUT_S, follow_redirects=True).raise_for_status().content


def _fetched_once(path: Path, fetch: Fetch) -> Path:
    if path.is_file() and _is_authors(path.read_bytes()):
        return path
    log.info("fetching the default voice from %s", AUTHORS_URL)
    try:
        data = fetch(AUTHORS_URL)
        if not _is_authors(data):
            raise SettingsError(
                f"the default voice that was fetched is not the one expected (its sha256 differs); {_WHAT_TO_PASS}"
            )
        _write_whole(path, data)
    except (httpx.HTTPError, OSError) as error:
        raise SettingsError(
            f"the checkpoint has no default voice and fetching {AUTHORS_URL} failed "
            f"({type(error).__name__}); {_WHAT_TO_PASS}"
        ) from error
    return path


def _is_authors(data: bytes) -> bool:
    return hashlib.sha256(data).hexdigest() == AUTHORS_SHA256


def _write_whole(path: Path, data: bytes) -> None:
    """Under its name only once complete: another process may be looking."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        Path(folder, path.name).write_bytes(data)
        Path(folder, path.name).replace(path)
