"""What was asked -> chat messages, and how many tokens they will be.

Both modes leave the last turn open after `<tts_start>`, which is what makes the model answer in speech.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sidecar.engine.text import TextTokenizer
from sidecar.errors import BadRequest
from step_audio_vllm.vocabulary import AUDIO_END, AUDIO_START, BEGIN_OF_TURN, END_OF_TURN, TTS_START

#: A recording is heard in pieces of 25 s at 16 kHz, each framed by its own pair of markers.
PIECE_SAMPLES = 400_000
#: Sound a placeholder stands for: 80 ms at 16 kHz.
PLACEHOLDER_SAMPLES = 1280


@dataclass(frozen=True)
class Prompt:
    """Chat messages in OpenAI's form, and the length of each recording in them, in order."""

    messages: list[dict[str, Any]]
    recording_samples: tuple[int, ...] = ()  # at 16 kHz


def read_aloud(text: str, system_prompt: str) -> Prompt:
    """Text-to-speech: the system turn asks to read, the human turn is the text."""
    return Prompt([*system_turn(system_prompt), {"role": "user", "content": text}, open_speech_turn()])


def answer_recording(wav: bytes, samples: int, text: str, system_prompt: str) -> Prompt:
    """Speech-to-speech: a recording, then the instruction.

    Args:
        wav: 16 kHz mono PCM16 wav. One item however long it is: the model's processor cuts it into pieces.
        samples: in `wav`.
        text: may be empty.
        system_prompt: the system turn; empty for none.
    """
    recording = {"data": base64.b64encode(wav).decode("ascii"), "format": "wav"}
    content: list[dict[str, Any]] = [{"type": "input_audio", "input_audio": recording}]
    if text:
        content.append({"type": "text", "text": text})
    messages = [*system_turn(system_prompt), {"role": "user", "content": content}, open_speech_turn()]
    return Prompt(messages, (samples,))


def system_turn(text: str) -> list[dict[str, Any]]:
    return [{"role": "system", "content": text}] if text else []


def open_speech_turn() -> dict[str, Any]:
    return {"role": "assistant", "content": TTS_START}


def placeholders(samples: int) -> list[int]:
    """Placeholders of each piece of a recording of `samples` at 16 kHz; a very short last piece has none.

    Two convolutions, a pooling and the adaptor halve the 10 ms mel frames three times, which comes to this formula.
    """
    pieces = [min(PIECE_SAMPLES, samples - start) for start in range(0, samples, PIECE_SAMPLES)]
    return [(piece + 959) // PLACEHOLDER_SAMPLES for piece in pieces]


def count_prompt_tokens(prompt: Prompt, text: TextTokenizer) -> int:
    """How many ids the prompt will have in the engine, whose chat format `render` repeats."""
    inside = sum(sum(placeholders(samples)) for samples in prompt.recording_samples)
    return text.count(render(prompt.messages, prompt.recording_samples)) + inside


def render(messages: Sequence[dict[str, Any]], recording_samples: Sequence[int] = ()) -> str:
    """The prompt as text, for plain turns with the last one open; a recording's pieces are empty pairs of markers."""
    recordings = iter(recording_samples)

    def written(content: str | list[dict[str, Any]]) -> str:
        if isinstance(content, str):
            return content
        return "".join(
            part["text"] if part["type"] == "text" else (AUDIO_START + AUDIO_END) * len(placeholders(next(recordings)))
            for part in content
        )

    turns = [
        BEGIN_OF_TURN + {"user": "human"}.get(message["role"], message["role"]) + "\n" + written(message["content"])
        for message in messages
    ]
    return END_OF_TURN.join(turns)


def room_for_reply(prompt_tokens: int, max_model_len: int, wanted_tokens: int) -> int:
    """`max_tokens` for a prompt: as many as wanted, or as many as the context leaves.

    Raises:
        BadRequest: the prompt fills the context.
    """
    room = max_model_len - 1 - prompt_tokens
    if room < 1:
        raise BadRequest(
            f"the request makes a prompt of {prompt_tokens} tokens, and {max_model_len} have to hold prompt and reply; "
            "send a shorter text or recording",
            code="context_length_exceeded",
        )
    return min(wanted_tokens, room)
