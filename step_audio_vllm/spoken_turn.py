"""A spoken turn of the history, as a recording that holds token ids in place of sound.

Chat takes text, and a character that is split over several tokens, with speech tokens in between, has no text form.
So the ids of an earlier spoken turn travel as the samples of an `input_audio` item: a mono 16 kHz wav of 32-bit
floats, which every decoder hands on unchanged. Sound lies between -1 and 1 and never begins with these numbers; a
recording in 16-bit PCM cannot.

    begin (4 numbers) | how many ids | CRC-32 of the ids, high and low half | the ids
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from step_audio_vllm.vocabulary import SPEECH_PAD_CODE, Vocabulary

#: Whole numbers up to here are exact in a 32-bit float.
_LARGEST = 2**24
_BEGIN = np.array([-11862017.0, 9437183.0, -8650753.0, 12582911.0], dtype=np.float32)
_HEADER = len(_BEGIN) + 3


def samples_of(token_ids: Sequence[int]) -> NDArray[np.float32]:
    """The samples of an item that stands for these ids; write them as a 16 kHz mono wav of 32-bit floats.

    Raises:
        ValueError: there is no id, or one that a float cannot hold exactly.
    """
    if not token_ids:
        raise ValueError("a spoken turn has at least one token id; leave the item out for a turn without speech")
    if min(token_ids) < 0 or max(token_ids) >= _LARGEST:
        raise ValueError(f"token ids must lie in 0 … {_LARGEST - 1}; got {min(token_ids)} … {max(token_ids)}")
    ids = np.asarray(token_ids, dtype="<i4")
    header = [len(ids), *divmod(_checksum(ids), 2**16)]
    return np.concatenate([_BEGIN, np.asarray(header, dtype=np.float32), ids.astype(np.float32)])


def token_ids_of(waveform: NDArray[np.float32]) -> list[int] | None:
    """The ids that a decoded item stands for; None where it is a recording.

    Args:
        waveform: (S,) as decoded, at 16 kHz.

    Raises:
        ValueError: it begins like a spoken turn, but the rest of it was cut, resampled or changed.
    """
    if not np.array_equal(waveform[: len(_BEGIN)], _BEGIN):
        return None
    body = waveform[_HEADER:]
    # first, because turning other numbers into integers is undefined; NaN compares as False
    if len(waveform) <= _HEADER or not ((waveform[len(_BEGIN) :] >= 0) & (waveform[len(_BEGIN) :] < _LARGEST)).all():
        raise _damaged()
    count, high, low = (float(number) for number in waveform[len(_BEGIN) : _HEADER])
    ids = body.astype("<i4")
    if count != len(body) or (ids != body).any() or high * 2**16 + low != _checksum(ids):
        raise _damaged()
    return [int(token_id) for token_id in ids]


def allowed_ids(vocabulary: Mapping[str, int]) -> frozenset[int]:
    """What may stand in a spoken turn: text, speech tokens, padding, and the markers of a speech section.

    Anything else could end the turn, begin another, or take the place of a recording.

    Args:
        vocabulary: a tokenizer's name -> id table.

    Raises:
        MissingToken: it lacks a token that the format is made of.
    """
    words = Vocabulary.from_ids(vocabulary)
    of_speech = {words.tts_start, words.tts_end, words.tts_pad, words.first_speech_id + SPEECH_PAD_CODE}
    return frozenset(
        token_id
        for token_id in vocabulary.values()
        if token_id in of_speech or not (words.is_silent(token_id) or token_id in words.stop_ids)
    )


def _checksum(ids: NDArray[np.signedinteger]) -> int:
    return zlib.crc32(ids.tobytes())


def _damaged() -> ValueError:
    return ValueError(
        "an item begins like a spoken turn of the history, but its token ids are damaged; "
        "send it as a mono 16 kHz wav of 32-bit floats, whole and unchanged"
    )
