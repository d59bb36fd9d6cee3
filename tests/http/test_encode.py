"""Every format holds exactly the sound that was fed, and gives it out as it comes."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from decoded_sound import (
    STREAMED_SILENCE,
    WHOLE_SILENCE,
    Samples,
    at_24_khz,
    by_ffmpeg,
    by_libsndfile,
    signal_to_noise_db,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.audio.decode import decode_recording
from sidecar.audio.encode import ENCODERS, wav_header
from sidecar.audio.ogg import OggOpusPages
from sidecar.audio.pcm import pcm16
from sidecar.requests import RESPONSE_FORMATS
from sidecar.timebase import SAMPLE_RATE_HZ

#: The least signal-to-noise ratio that a format keeps of `voice()`, in dB; 16 bits give 80.
LEAST_SNR_DB = {"wav": 75, "pcm": 75, "flac": 75, "mp3": 20, "opus": 15, "aac": 20}
COMPRESSED = [name for name, kind in ENCODERS.items() if kind.costly]

every_format = pytest.mark.parametrize("name", ENCODERS)


def voice(samples: int) -> Samples:
    """A buzz like a voice's, gliding from 110 to 220 Hz and back, loud from its first sample on."""
    seconds = np.arange(samples) / SAMPLE_RATE_HZ
    phase = 2 * np.pi * np.cumsum(165 - 55 * np.cos(2 * np.pi * seconds / 2)) / SAMPLE_RATE_HZ
    return sum(np.sin(k * phase) / k for k in range(1, 15)).astype(np.float32) * np.float32(0.4)


def written(name: str, samples: Samples, *, whole: bool) -> bytes:
    encoder = ENCODERS[name](whole=whole)
    return encoder.header() + encoder.feed(samples) + encoder.finish()


def test_the_names_that_requests_may_give_are_those_of_the_encoders() -> None:
    assert tuple(ENCODERS) == RESPONSE_FORMATS


@every_format
@pytest.mark.parametrize("samples", [*range(480, 3360, 480), 961, 24_000])
def test_a_whole_file_has_the_exact_length_and_the_sound(name: str, samples: int) -> None:
    truth = voice(samples)
    data = written(name, truth, whole=True)
    decoders = [at_24_khz(by_ffmpeg(data, name), name), by_libsndfile(data, name)]
    for decoded in decoders:
        if decoded is None:
            continue
        if name == "aac":  # has no exact length: whole frames, the first of them silent
            assert decoded.size == -(-(1024 + samples) // 1024) * 1024
        else:
            assert decoded.size == samples
        heard = decoded[WHOLE_SILENCE.get(name, 0) :]
        assert heard.size >= samples
        if samples >= 24_000:
            assert signal_to_noise_db(truth, heard) > LEAST_SNR_DB[name]


def test_a_whole_flac_file_has_its_length_and_checksum() -> None:
    truth = voice(5000)
    stream_info = written("flac", truth, whole=True)[8:42]
    assert int.from_bytes(stream_info[10:18], "big") & (1 << 36) - 1 == 5000
    assert stream_info[18:] == hashlib.md5(pcm16(truth).tobytes()).digest()
    streamed = ENCODERS["flac"](whole=False).header()
    assert streamed[26:42] == bytes(16), "a stream's header says what nobody knows yet"
    assert len(streamed) < 200, "and has no room for more"


@every_format
@given(pieces=st.lists(st.integers(0, 4000) | st.sampled_from([0, 1, 480, 960, 5760, 9600]), min_size=1, max_size=7))
@settings(max_examples=12, deadline=None)
def test_what_was_fed_can_be_heard_at_once_and_is_never_heard_otherwise(name: str, pieces: list[int]) -> None:
    truth, encoder = voice(sum(pieces)), ENCODERS[name](whole=False)
    data, fed, prefixes = encoder.header(), 0, []
    for piece in pieces:
        data += encoder.feed(truth[fed : fed + piece])
        fed += piece
        heard = by_ffmpeg(data, name)
        in_time = max(at_24_khz(heard, name).size - STREAMED_SILENCE.get(name, 0), 0)
        assert in_time >= fed - encoder.delay_samples
        if all(size % 480 == 0 for size in pieces) and name in ("flac", "opus"):
            assert in_time >= fed - {"flac": 0, "opus": 156}[name]
        prefixes.append(heard)
    data += encoder.finish()
    complete = by_ffmpeg(data, name)
    for heard in prefixes:
        np.testing.assert_array_equal(heard, complete[: heard.size])
    np.testing.assert_array_equal(complete, by_ffmpeg(written(name, truth, whole=False), name))


@every_format
def test_a_stream_of_chunks_sounds_as_what_was_fed(name: str) -> None:
    truth, encoder = voice(48_000), ENCODERS[name](whole=False)
    data = encoder.header()
    for start in range(0, truth.size, 5760):
        data += encoder.feed(truth[start : start + 5760])
    data += encoder.finish()
    heard = at_24_khz(by_ffmpeg(data, name), name)[STREAMED_SILENCE.get(name, 0) :]
    assert 0 <= heard.size - truth.size < (1024 if name in STREAMED_SILENCE else 1)
    assert signal_to_noise_db(truth, heard) > LEAST_SNR_DB[name]


@pytest.mark.parametrize("name", ["wav", *COMPRESSED])  # pcm says neither rate nor form
def test_a_file_can_be_sent_back_as_a_recording(name: str) -> None:
    truth = voice(300_123)  # longer than the blocks in which recordings are read
    for data in (written(name, truth, whole=False), written(name, truth, whole=True)):
        assert decode_recording(data).seconds >= truth.size / SAMPLE_RATE_HZ


@pytest.mark.parametrize("name", COMPRESSED)
def test_no_sound_at_all_is_a_moment_of_silence(name: str) -> None:
    for data in (written(name, voice(0), whole=False), written(name, voice(0), whole=True)):
        decoded = by_ffmpeg(data, name)
        assert decoded.size <= 2048
        assert np.abs(decoded).max(initial=0) < 1e-4


def test_no_sound_at_all_is_an_empty_wav_file() -> None:
    assert written("wav", voice(0), whole=True) == wav_header(0)
    assert written("pcm", voice(0), whole=True) == b""


def test_levels_are_clipped_and_never_wrap_around() -> None:
    edges = np.array([-1, 1, 1.0001, -1.0001, 1e30, -1e30, np.inf, -np.inf], np.float32)
    assert pcm16(edges).tolist() == [-32767, 32767, 32767, -32767, 32767, -32767, 32767, -32767]


@every_format
def test_sound_far_above_full_scale_stays_at_full_scale(name: str) -> None:
    truth = np.sign(voice(24_000)) * np.float32(1e30)
    heard = at_24_khz(by_ffmpeg(written(name, truth, whole=True), name), name)[WHOLE_SILENCE.get(name, 0) :]
    assert signal_to_noise_db(np.sign(truth), heard) > 10


def test_what_is_no_number_is_never_written() -> None:
    with pytest.raises(AssertionError, match="not finite"):
        pcm16(np.array([0, np.nan], np.float32))


def test_every_ogg_page_is_numbered_and_only_the_last_one_is_marked() -> None:
    encoder, truth = ENCODERS["opus"](whole=False), voice(72_000)
    pieces = [encoder.header(), encoder.feed(truth[:0]), encoder.feed(truth[:960]), encoder.feed(truth[960:])]
    pages = (b"".join(pieces) + encoder.finish()).split(b"OggS")[1:]
    assert pieces[1] == b""
    assert [int.from_bytes(page[14:18], "little") for page in pages] == list(range(len(pages)))
    assert [page[1] for page in pages] == [2, *[0] * (len(pages) - 2), 4]
    ends = [int.from_bytes(page[2:10], "little") for page in pages]
    assert ends == sorted(ends) and ends[-1] == 312 + 2 * 72_000
    assert ends[2] == 2 * 960, "a chunk's page holds the whole of it"


def test_a_page_takes_as_many_of_the_longest_packets_as_it_has_room_for() -> None:
    pages = OggOpusPages(bytes(19)).write([bytes(1275)] * 43).split(b"OggS")[1:]
    assert [len(page) // 1275 for page in pages] == [42, 1]
