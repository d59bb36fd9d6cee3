"""POST /generate in every format: whole and streamed, to the end, broken and hung up on."""

from __future__ import annotations

import gc
import json
import logging
from collections.abc import Iterator

import numpy as np
import pytest
import requests
from decoded_sound import (
    STREAMED_SILENCE,
    WHOLE_SILENCE,
    Samples,
    at_24_khz,
    by_ffmpeg,
    by_libsndfile,
    signal_to_noise_db,
)
from speech_parts import NAN_SEED, GatedEngine, spoken_reply
from speech_server import SpeechServer, wait_until

from sidecar.audio import encoding
from sidecar.audio.encode import ENCODERS, PcmEncoder
from sidecar.engine.text import TextTokenizer
from sidecar.timebase import tokens_to_samples

SPEECH_TOKENS = 40
SAMPLES = tokens_to_samples(SPEECH_TOKENS)
SEED = 7
MEDIA_TYPES = {
    "wav": "audio/wav",
    "pcm": "audio/pcm; rate=24000; channels=1; bits=16",
    "flac": "audio/flac",
    "mp3": "audio/mpeg",
    "opus": "audio/ogg; codecs=opus",
    "aac": "audio/aac",
}
#: The tiny model's voice is noise, of which codecs keep little. A sample too early or too late, or another seed's
#: sound, would be below 0.
LEAST_SNR_DB = {"wav": 100, "pcm": 100, "flac": 100, "mp3": 6, "opus": 6, "aac": 6}

every_format = pytest.mark.parametrize("name", ENCODERS)
compressed = pytest.mark.parametrize("name", [name for name, kind in ENCODERS.items() if kind.costly])


@pytest.fixture
def truth(server: SpeechServer) -> Samples:
    return by_ffmpeg(server.generate(seed=SEED, response_format="pcm").content, "pcm")


@every_format
def test_a_whole_file_is_the_reply_from_its_first_to_its_last_sample(
    server: SpeechServer, truth: Samples, name: str
) -> None:
    answer = server.generate(seed=SEED, response_format=name)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == MEDIA_TYPES[name]
    assert f'{ENCODERS[name].suffix}"' in answer.headers["Content-Disposition"]
    assert answer.headers["X-Transcript"]
    assert int(answer.headers["content-length"]) == len(answer.content)
    for decoded in (at_24_khz(by_ffmpeg(answer.content, name), name), by_libsndfile(answer.content, name)):
        if decoded is None:
            continue
        silence = WHOLE_SILENCE.get(name, 0)
        assert decoded.size == (-(-(silence + SAMPLES) // 1024) * 1024 if name == "aac" else SAMPLES)
        assert signal_to_noise_db(truth, decoded[silence:]) > LEAST_SNR_DB[name]


@every_format
def test_a_streamed_file_is_the_reply_too(server: SpeechServer, truth: Samples, name: str) -> None:
    answer = server.stream(seed=SEED, response_format=name)
    assert answer.headers["content-type"] == MEDIA_TYPES[name]
    assert f'{ENCODERS[name].suffix}"' in answer.headers["Content-Disposition"]
    silence = STREAMED_SILENCE.get(name, 0)
    heard = at_24_khz(by_ffmpeg(answer.content, name), name)[silence:]
    assert 0 <= heard.size - SAMPLES < (1024 if silence else 1)
    assert signal_to_noise_db(truth, heard) > LEAST_SNR_DB[name]
    read = by_libsndfile(answer.content, name)
    if read is not None:
        # in a FLAC file of unknown length libsndfile misses the last block
        assert read.size - silence >= SAMPLES - (480 if name == "flac" else 0)
        assert signal_to_noise_db(truth, read[silence:]) > LEAST_SNR_DB[name]


def chunks_of(server: SpeechServer, name: str) -> Iterator[bytes]:
    """The body of a streamed answer, as the server sent it piece by piece."""
    wanted = {"text": "Hello", "streaming": True, "seed": SEED, "response_format": name}
    with server.connect(json.dumps(wanted).encode()) as connection, connection.makefile("rb") as received:
        while received.readline() != b"\r\n":
            pass
        while size := int(received.readline(), 16):
            yield received.read(size)
            received.readline()


@every_format
def test_every_chunks_sound_is_in_the_bytes_that_are_sent_with_it(server: SpeechServer, name: str) -> None:
    sizes = [len(chunk) // 2 for chunk in chunks_of(server, "pcm")]
    assert len(sizes) == 4, "the reply has four chunks"
    chunks = list(chunks_of(server, name))
    data = ENCODERS[name](whole=False).header()
    if data:
        assert chunks.pop(0) == data, "the header leaves by itself"
    # the speech's four, and where the codec holds something back, its end
    assert len(chunks) == len(sizes) + (name in ("mp3", "opus", "aac"))
    fed = 0
    for samples, chunk in zip(sizes, chunks, strict=False):
        data, fed = data + chunk, fed + samples
        heard = at_24_khz(by_ffmpeg(data, name), name).size - STREAMED_SILENCE.get(name, 0)
        assert heard >= fed - {"wav": 0, "pcm": 0, "flac": 0, "opus": 156}.get(name, ENCODERS[name].delay_samples)


@every_format
@pytest.mark.parametrize("streaming", [False, True])
def test_a_reply_without_speech_can_be_played(
    server: SpeechServer, engine: GatedEngine, text: TextTokenizer, name: str, streaming: bool
) -> None:
    engine.reset([text.vocabulary.tts_end, text.vocabulary.end_of_turn])
    answer = server.generate(streaming=streaming, response_format=name)
    assert answer.status_code == 200
    heard = by_ffmpeg(answer.content, name)
    assert heard.size <= 2048 and np.abs(heard).max(initial=0) < 1e-4
    assert heard.size > 0 or name in ("wav", "pcm", "opus")


def test_one_token_is_a_file_of_40_ms(server: SpeechServer, engine: GatedEngine, text: TextTokenizer) -> None:
    engine.reset(spoken_reply(text, "Hm", 1))
    for name in ("wav", "flac", "mp3", "opus"):
        read = by_libsndfile(server.generate(response_format=name).content, name)
        assert read is not None and read.size == 960


def test_an_unknown_format_is_refused_with_the_names_of_those_there_are(server: SpeechServer) -> None:
    answer = server.generate(response_format="vorbis")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "response_format")
    for name in ENCODERS:
        assert name in answer.json()["error"]["message"]


# when it breaks


class BreaksLater(PcmEncoder):
    """The first chunk goes well, the second does not."""

    costly = True

    def __init__(self, *, whole: bool) -> None:
        super().__init__(whole=whole)
        self.fed = 0

    def feed(self, samples: Samples) -> bytes:
        self.fed += 1
        if self.fed > 1:
            raise RuntimeError("the codec fell off")
        return super().feed(samples)


@every_format
def test_samples_that_are_not_finite_never_reach_an_encoder(server: SpeechServer, name: str) -> None:
    answer = server.generate(response_format=name, seed=NAN_SEED)
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "synthesis_failed")


class NotInThisBuild(PcmEncoder):
    def __init__(self, *, whole: bool) -> None:
        raise LookupError("libmp3lame")


def test_an_encoder_that_breaks_ends_its_own_reply_alone(
    server: SpeechServer, engine: GatedEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(encoding.ENCODERS, "mp3", BreaksLater)
    engine.hold_at = 20
    with server.stream(response_format="opus", seed=SEED) as other:
        with pytest.raises(requests.exceptions.ChunkedEncodingError):
            with server.stream(response_format="mp3") as broken:
                engine.hold_at = None
                assert broken.status_code == 200 and not broken.content
        assert by_ffmpeg(other.content, "opus").size == 2 * SAMPLES
    answer = server.generate(response_format="mp3")
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "encoding_failed")
    assert "fell off" in answer.json()["error"]["message"]
    ended = [line for line in caplog.messages if "speech ended" in line and "encoding_failed" in line]
    assert len(ended) == 2, "each says why it ended"
    assert server.streams_running == 0


@pytest.mark.parametrize("streaming", [False, True])
def test_a_codec_that_is_not_there_is_told_before_the_first_byte(
    server: SpeechServer, monkeypatch: pytest.MonkeyPatch, streaming: bool
) -> None:
    monkeypatch.setitem(encoding.ENCODERS, "mp3", NotInThisBuild)
    answer = server.generate(response_format="mp3", streaming=streaming)
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "encoding_failed")
    assert "another response_format" in answer.json()["error"]["message"]
    wait_until(lambda: server.streams_running == 0, within_s=5)


def encoders_alive(name: str) -> int:
    return sum(type(thing) is ENCODERS[name] for thing in gc.get_objects())


@compressed
def test_hanging_up_frees_the_encoder_as_well(
    server: SpeechServer, engine: GatedEngine, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    engine.hold_at = 20
    with server.stream(response_format=name) as answer:
        assert answer.raw.read(50)
        assert encoders_alive(name) == 1
    wait_until(lambda: encoders_alive(name) == 0 and server.streams_running == 0, within_s=2)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
