"""A plain client: says a text, or answers a recording, and writes what it hears.

python examples/say.py "Good morning!" -o morning.wav
python examples/say.py "Answer the question." --recording examples/question.wav --stream
python examples/say.py "Good evening!" --voice anna
"""

from __future__ import annotations

import argparse
import sys
import time
import wave
from dataclasses import dataclass
from pathlib import Path

import httpx

HEADER_BYTES = 44
SAMPLE_RATE_HZ = 24_000
SAMPLE_BYTES = 2
TIMEOUT_S = 300


@dataclass(frozen=True)
class Heard:
    """One answer: its sound, and when it came, in seconds after the request left."""

    pcm: bytes
    first_sound_s: float
    total_s: float

    @property
    def audio_s(self) -> float:
        return len(self.pcm) / SAMPLE_BYTES / SAMPLE_RATE_HZ

    @property
    def rtf(self) -> float:
        """Real-time factor: seconds spent for each second of sound; below 1 keeps up with the listener."""
        return self.total_s / self.audio_s if self.pcm else float("inf")

    def write(self, path: Path) -> None:
        """A wav file with true sizes, which the header of a streamed answer cannot have."""
        with wave.open(str(path), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(SAMPLE_BYTES)
            file.setframerate(SAMPLE_RATE_HZ)
            file.writeframes(self.pcm)


class Refused(Exception):
    """The server's own words for why not."""


def ask(url: str, text: str, *, recording: Path | None = None, stream: bool = False, voice: str = "default") -> Heard:
    """POST /generate and listen to the end.

    Raises:
        Refused: the server answered with an error.
        httpx.HTTPError: it is not there, or the answer was cut short.
    """
    form = {"text": text, "streaming": str(stream).lower(), "voice": voice}
    files = None if recording is None else {"audio": (recording.name, recording.read_bytes())}
    sent_s = time.perf_counter()
    first_sound_s = 0.0
    heard = bytearray()
    with httpx.stream("POST", f"{url}/generate", data=form, files=files, timeout=TIMEOUT_S) as response:
        if response.is_error:
            response.read()
            raise Refused(response.text)
        for piece in response.iter_bytes():
            heard += piece
            if not first_sound_s and len(heard) > HEADER_BYTES:
                first_sound_s = time.perf_counter() - sent_s
    return Heard(bytes(heard[HEADER_BYTES:]), first_sound_s, time.perf_counter() - sent_s)


def main() -> int:
    parser = argparse.ArgumentParser(description="Say a text, or answer a recording.")
    parser.add_argument("text", help="the words to speak, or the instruction for the recording")
    parser.add_argument("--recording", type=Path, help="speech to answer: wav, flac, ogg or mp3")
    parser.add_argument("--voice", default="default", help="who speaks; GET /v1/voices tells who can")
    parser.add_argument("--stream", action="store_true", help="take the sound as it is made")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("-o", "--output", type=Path, default=Path("output.wav"))
    wanted = parser.parse_args()
    try:
        heard = ask(wanted.url, wanted.text, recording=wanted.recording, stream=wanted.stream, voice=wanted.voice)
    except (Refused, httpx.HTTPError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    heard.write(wanted.output)
    print(f"{wanted.output}: {heard.audio_s:.2f} s of audio, TTFA {heard.first_sound_s:.2f} s, RTF {heard.rtf:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
