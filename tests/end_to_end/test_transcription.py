"""Transcription and translation through the whole server: launcher, our port, vLLM, plugin."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import soundfile

pytestmark = pytest.mark.vllm


def ask(client: httpx.Client, task: str, wav: bytes, **fields: Any) -> httpx.Response:
    answer = client.post(f"/v1/audio/{task}", files={"file": ("a.wav", wav)}, data=fields)
    assert answer.status_code == 200, answer.text
    return answer


def hum(seconds: float) -> bytes:
    sink = io.BytesIO()
    samples = np.sin(np.arange(round(seconds * 16_000)) * 0.05) * 0.2
    soundfile.write(sink, samples, 16_000, format="WAV", subtype="PCM_16")
    return sink.getvalue()


@pytest.mark.parametrize("task", ["transcriptions", "translations"])
def test_a_recording_becomes_text_that_ends_by_itself(client: httpx.Client, recordings: Path, task: str) -> None:
    question = (recordings / "question.wav").read_bytes()
    text = ask(client, task, question).json()["text"]
    assert 0 < len(text) < 500, "the model's end token ended it, not the limit"
    assert "<" not in text
    assert ask(client, task, question).json()["text"] == text, "greedy, whatever the server's sampling is"


def test_the_formats_that_the_server_offers(client: httpx.Client, recordings: Path) -> None:
    question = (recordings / "question.wav").read_bytes()
    text = ask(client, "transcriptions", question).json()["text"]
    assert ask(client, "transcriptions", question, response_format="text").text == text
    verbose = ask(client, "transcriptions", question, response_format="verbose_json", language="en").json()
    assert (verbose["text"], verbose["language"], verbose["task"]) == (text, "en", "transcribe")
    assert verbose["duration"] == pytest.approx(soundfile.info(recordings / "question.wav").duration)


def test_recordings_up_to_the_servers_limit_are_taken_and_longer_ones_refused_in_seconds(client: httpx.Client) -> None:
    # above what vLLM takes by default: 600 s, and 25 MiB, which are 819 s
    assert ask(client, "transcriptions", hum(1299), max_completion_tokens="4").json()["text"]
    answer = client.post("/v1/audio/transcriptions", files={"file": ("a.wav", hum(1301))})
    assert answer.status_code == 400
    assert "1300 s" in answer.json()["error"]["message"]
