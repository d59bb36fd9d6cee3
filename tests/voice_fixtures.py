"""Voices for tests over HTTP: made-up singers, what asks for them, and a token2wav that opens them when told to."""

from __future__ import annotations

import io
import threading
import time
from typing import Any

import numpy as np
import requests
import soundfile
from speech_parts import FaultyToken2Wav
from speech_server import SpeechServer

from sidecar.token2wav.state import OpenedVoice, VoiceFeatures

RATE_HZ = 24_000


def sung(pitch_hz: float, seconds: float = 2.0) -> bytes:
    """A wav file of a tone with twenty overtones, swelling and fading four times a second."""
    time_s = np.arange(int(seconds * RATE_HZ)) / RATE_HZ
    tone = sum(np.sin(2 * np.pi * k * pitch_hz * time_s) / k for k in range(1, 21))
    samples = 0.3 * tone * (0.6 + 0.4 * np.sin(2 * np.pi * 4 * time_s))
    file = io.BytesIO()
    soundfile.write(file, samples.astype(np.float32), RATE_HZ, format="WAV", subtype="PCM_16")
    return file.getvalue()


def add_voice(server: SpeechServer, name: str, recording: bytes, **fields: str) -> requests.Response:
    form = {"name": name, **fields}
    return requests.post(f"{server.url}/v1/voices", data=form, files={"file": ("a.wav", recording)}, timeout=60)


def delete_voice(server: SpeechServer, name: str) -> requests.Response:
    return requests.delete(f"{server.url}/v1/voices/{name}", timeout=30)


def voices_of(server: SpeechServer) -> dict[str, Any]:
    answer = requests.get(f"{server.url}/v1/voices", timeout=30)
    assert answer.ok, answer.text
    return {one["name"]: one for one in answer.json()["data"]}


class HeldOpener(FaultyToken2Wav):
    """Opening waits until `go` is set, then goes on computing for `busy_s`."""

    def __init__(self, shared: FaultyToken2Wav) -> None:
        super().__init__(shared.real)
        self.opened = 0
        self.building = threading.Event()
        self.go = threading.Event()
        self.go.set()
        self.busy_s = 0.0

    def open_voice(self, features: VoiceFeatures) -> OpenedVoice:
        self.opened += 1
        self.building.set()
        assert self.go.wait(60), "nobody let the voice be opened"
        until = time.monotonic() + self.busy_s
        while time.monotonic() < until:
            self.real.open_voice(features)
        return self.real.open_voice(features)
