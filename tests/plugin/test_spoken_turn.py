"""Token ids in place of sound: exact on the way through any decoder, and mistaken for nothing else."""

from __future__ import annotations

import io

import av
import numpy as np
import pytest
import soundfile
from golden_folders import DATA
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from requests_with_audio import float_wav
from tokenizers import Tokenizer

from step_audio_vllm.spoken_turn import allowed_ids, samples_of, token_ids_of

IDS = [151693, 0, 151696, 158256, 158257, 99, 151694]


@given(st.lists(st.integers(0, 2**24 - 1), min_size=1, max_size=300))
def test_ids_come_back_as_they_went(token_ids: list[int]) -> None:
    assert token_ids_of(samples_of(token_ids)) == token_ids


def by_soundfile(wav: bytes) -> NDArray[np.float32]:
    samples, _ = soundfile.read(io.BytesIO(wav), dtype="float32")
    return np.asarray(samples)


def by_ffmpeg(wav: bytes) -> NDArray[np.float32]:
    with av.open(io.BytesIO(wav)) as container:
        frames = [frame.to_ndarray() for frame in container.decode(audio=0)]
    mono: NDArray[np.float32] = np.concatenate(frames, axis=-1).astype(np.float32).mean(axis=0)
    return mono


@pytest.mark.parametrize("decode", [by_soundfile, by_ffmpeg])
def test_no_decoder_changes_them(decode: object) -> None:
    ids = [*range(0, 158720, 7), *IDS]
    assert token_ids_of(decode(float_wav(samples_of(ids)))) == ids  # type: ignore[operator]


@pytest.mark.parametrize("token_ids", [[], [-1], [2**24]])
def test_ids_that_would_not_survive_are_refused(token_ids: list[int]) -> None:
    with pytest.raises(ValueError, match="token id"):
        samples_of(token_ids)


def as_pcm16(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    file = io.BytesIO()
    soundfile.write(file, samples, 16000, format="WAV", subtype="PCM_16")
    return by_soundfile(file.getvalue())


@pytest.mark.parametrize(
    "recording",
    [
        np.zeros(0, dtype=np.float32),
        np.ones(1, dtype=np.float32),
        np.full(400_000, -1.0, dtype=np.float32),
        np.full(3, 1e30, dtype=np.float32),
        np.full(100, np.nan, dtype=np.float32),
        samples_of(IDS)[:3],
        samples_of(IDS)[1:],
        samples_of(IDS) / np.float32(2**24),
        as_pcm16(samples_of(IDS)),
    ],
)
def test_a_recording_is_not_taken_for_a_spoken_turn(recording: NDArray[np.float32]) -> None:
    assert token_ids_of(recording) is None


def test_whatever_is_damaged_says_what_to_send() -> None:
    whole = samples_of(IDS)
    damaged = [whole[:end] for end in range(4, len(whole))]
    damaged += [np.append(whole, value).astype(np.float32) for value in (0, 5, 0.5)]
    for place in range(4, len(whole)):
        for value in (whole[place] + 1, whole[place] + 0.5, -1, np.nan, np.inf, 2**24):
            changed = whole.copy()
            changed[place] = value
            if changed[place] != whole[place]:
                damaged.append(changed)
    for samples in damaged:
        with pytest.raises(ValueError, match="mono 16 kHz wav of 32-bit floats"):
            token_ids_of(samples)


def test_only_what_a_speech_section_is_made_of_may_stand_in_one() -> None:
    vocabulary = Tokenizer.from_file(str(DATA / "llm" / "checkpoint" / "tokenizer.json")).get_vocab()
    allowed = allowed_ids(vocabulary)
    in_section = ["<tts_start>", "<tts_end>", "<tts_pad>", "<audio_0>", "<audio_6560>", "<audio_6561>", "a", "Ġ"]
    outside = ["<|BOT|>", "<|EOT|>", "<|endoftext|>", "<|im_end|>", "<audio_start>", "<audio_end>", "<audio_patch>"]
    assert allowed.issuperset(vocabulary[name] for name in in_section)
    assert allowed.isdisjoint(vocabulary[name] for name in outside)
    assert allowed <= set(vocabulary.values())
