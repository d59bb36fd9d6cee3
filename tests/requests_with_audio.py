"""Recorded chat requests with their recordings filled in, and small wav files."""

from __future__ import annotations

import base64
import copy
import io
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

GREEDY = {"temperature": 0, "ignore_eos": True, "return_token_ids": True, "skip_special_tokens": False}


def audio_item(wav: bytes) -> dict[str, Any]:
    return {"type": "input_audio", "input_audio": {"data": base64.b64encode(wav).decode(), "format": "wav"}}


def with_recordings(request: dict[str, Any], audio: Path) -> dict[str, Any]:
    """A recorded request as it goes over HTTP: files as base64, tools offered without vLLM parsing calls."""
    filled = copy.deepcopy(request)
    for message in filled["messages"]:
        if isinstance(message.get("content"), list):
            message["content"] = [
                audio_item((audio / part["input_audio"]["file"]).read_bytes()) if "input_audio" in part else part
                for part in message["content"]
            ]
    if "tools" in filled:
        filled["tool_choice"] = "none"
    return filled


def float_wav(samples: np.ndarray[Any, Any], sample_rate_hz: int = 16000) -> bytes:
    sink = io.BytesIO()
    soundfile.write(sink, samples, sample_rate_hz, format="WAV", subtype="FLOAT")
    return sink.getvalue()
