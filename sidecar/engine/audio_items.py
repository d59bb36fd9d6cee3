"""What a prompt hears -> the audio items that the engine gets, and how many ids stand for each."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

import numpy as np
import soundfile
from numpy.typing import NDArray

from sidecar.audio.decode import decode_recording, to_mono16k, wav16k_bytes
from sidecar.chat_messages import AudioItem
from sidecar.timebase import INPUT_RATE_HZ
from step_audio_vllm.spoken_turn import samples_of

#: A recording is heard in pieces of 25 s at 16 kHz, each of its own and framed by its own pair of markers, so items of
#: this length make the same prompt as one long item. They are far below the length that vLLM takes in one.
PIECE_SAMPLES = 400_000
#: Sound a placeholder stands for: 80 ms at 16 kHz.
PLACEHOLDER_SAMPLES = 1280
MARKERS_PER_PIECE = 2
#: A piece's last placeholder begins once this much of it is there: two convolutions, a pooling and the adaptor halve
#: the 10 ms mel frames three times.
_FIRST_PLACEHOLDER_SAMPLES = 321


def placeholders(samples: int) -> int:
    """Placeholders of a piece of at most `PIECE_SAMPLES`; a very short one has none."""
    return (samples + PLACEHOLDER_SAMPLES - _FIRST_PLACEHOLDER_SAMPLES) // PLACEHOLDER_SAMPLES


def recording_items(mono: NDArray[np.float32]) -> list[AudioItem]:
    """A recording (S,) at 16 kHz, cut where the model itself would cut it."""
    pieces = [mono[start : start + PIECE_SAMPLES] for start in range(0, len(mono), PIECE_SAMPLES)]
    return [AudioItem(wav16k_bytes(piece), placeholders(len(piece)) + MARKERS_PER_PIECE) for piece in pieces]


def spoken_item(token_ids: Sequence[int]) -> AudioItem:
    """A spoken turn of the history: ids in place of sound.

    Only this module writes such an item: a client's recording is always written anew as 16-bit PCM, which cannot hold
    one.
    """
    file = io.BytesIO()
    soundfile.write(file, samples_of(token_ids), INPUT_RATE_HZ, format="WAV", subtype="FLOAT")
    return AudioItem(file.getvalue(), len(token_ids), is_recording=False)


def recording_reader(max_seconds: float) -> Callable[[bytes], list[AudioItem]]:
    """Uploaded bytes -> items; raises UnsupportedMedia or UnusableAudio for what cannot be used."""

    def read(data: bytes) -> list[AudioItem]:
        return recording_items(to_mono16k(decode_recording(data, max_seconds=max_seconds)))

    return read


def recordings_reader(max_seconds: float, max_tokens: Callable[[], int]) -> Callable[[bytes], list[AudioItem]]:
    """`recording_reader` for all the recordings of one chat, which together may be too much to hold.

    Some kilobytes hold hours of silence. So once those before stand for more than `max_tokens`, no further one is
    decoded, and it has no items: `require_room` refuses this chat anyway, and its words depend on the rest alone.
    """
    read_one = recording_reader(max_seconds)
    taken = 0

    def read(data: bytes) -> list[AudioItem]:
        nonlocal taken
        if taken > max_tokens():
            return []
        items = read_one(data)
        taken += sum(item.prompt_tokens for item in items)
        return items

    return read


def longest_recording_s(tokens: int) -> float:
    """Seconds, down to a tenth, of the longest recording for which so many ids stand, or fewer."""
    whole, left = divmod(tokens, placeholders(PIECE_SAMPLES) + MARKERS_PER_PIECE)
    rest = left - MARKERS_PER_PIECE
    last = rest * PLACEHOLDER_SAMPLES + _FIRST_PLACEHOLDER_SAMPLES - 1 if rest >= 0 else 0
    samples = max(whole * PIECE_SAMPLES + min(last, PIECE_SAMPLES), 0)
    return samples * 10 // INPUT_RATE_HZ / 10
