"""A voice of one's own on the real server: real vLLM, real token2wav, tiny weights."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

pytestmark = pytest.mark.vllm

SAY = Path(__file__).parents[2] / "examples" / "say.py"


def test_a_voice_is_added_speaks_and_goes(client: httpx.Client, server: Any, recordings: Path) -> None:
    recording = (recordings / "question.wav").read_bytes()
    added = client.post("/v1/voices", data={"name": "anna"}, files={"file": ("question.wav", recording)})
    assert added.status_code == 201, added.text
    assert added.json()["duration_seconds"] == 2.984
    assert added.json() in client.get("/v1/voices").json()["data"]

    by_default, by_anna, again = (
        client.post("/generate", json={"text": "Good morning!", "seed": 1, "voice": voice})
        for voice in ("default", "anna", "anna")
    )
    assert by_default.status_code == by_anna.status_code == 200, by_anna.text
    assert by_anna.headers["X-Transcript"] == by_default.headers["X-Transcript"]
    assert by_anna.content == again.content != by_default.content

    words = [sys.executable, str(SAY), "Good morning!", "--voice", "anna", "--url", server.url, "-o", "anna.wav"]
    said = subprocess.run(words, cwd=recordings, capture_output=True, text=True, timeout=180, check=False)
    assert said.returncode == 0, said.stderr

    assert client.delete("/v1/voices/anna").json()["deleted"] is True
    refused = client.post("/generate", json={"text": "Good morning!", "voice": "anna"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "unknown_voice")
    said = subprocess.run(words, cwd=recordings, capture_output=True, text=True, timeout=180, check=False)
    assert said.returncode == 1
    assert "unknown_voice" in said.stderr
