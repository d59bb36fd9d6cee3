"""The field `voice`: who speaks a reply, and what opening a voice does to everybody else."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests
import torch
from speech_parts import FaultyToken2Wav, GatedEngine
from speech_server import SpeechServer, speech_server, wait_until
from voice_fixtures import HeldOpener, add_voice, delete_voice, sung, voices_of
from voice_parts import no_network

from sidecar.audio.decode import decode_recording
from sidecar.audio.pcm import pcm16
from sidecar.engine.text import TextTokenizer
from sidecar.settings import Settings, StreamSettings
from sidecar.streaming.chunking import Chunker, ChunkPlan
from sidecar.voices.features import VoiceExtractor
from sidecar.voices.library import VoiceLibrary

ANNA = sung(220)
SLOTS = 2


@pytest.fixture(scope="module")
def shared_opener(token2wav: FaultyToken2Wav) -> HeldOpener:
    return HeldOpener(token2wav)


@pytest.fixture(scope="module")
def one_server(
    checkpoint: Path,
    token2wav: FaultyToken2Wav,
    shared_opener: HeldOpener,
    reply: list[int],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[SpeechServer]:
    folder, cache = tmp_path_factory.mktemp("voices"), tmp_path_factory.mktemp("cache")
    library = VoiceLibrary(shared_opener, checkpoint, voice_dir=folder, cache_dir=cache, fetch=no_network)
    settings = Settings(model=checkpoint, voice_dir=folder, stream=StreamSettings(max_batch_size=SLOTS))
    with speech_server(settings, GatedEngine(reply), token2wav=token2wav, voices=library) as server:
        yield server


@pytest.fixture
def server(one_server: SpeechServer, reply: list[int]) -> Iterator[SpeechServer]:
    """With the checkpoint's own voices alone, and nothing running."""
    engine = one_server.engine
    assert isinstance(engine, GatedEngine)
    engine.reset(reply)
    yield one_server
    engine.hold_at = None
    wait_until(lambda: one_server.streams_running == 0, within_s=20)
    for name in [name for name, one in voices_of(one_server).items() if not one["built_in"]]:
        assert delete_voice(one_server, name).ok


@pytest.fixture
def engine(server: SpeechServer) -> GatedEngine:
    assert isinstance(server.engine, GatedEngine)
    return server.engine


@pytest.fixture
def opener(server: SpeechServer, shared_opener: HeldOpener) -> Iterator[HeldOpener]:
    shared_opener.building.clear()
    yield shared_opener
    shared_opener.busy_s = 0.0
    shared_opener.go.set()


def put(server: SpeechServer, name: str, recording: bytes = ANNA) -> Path:
    """A voice that nobody has opened yet."""
    assert server.services.settings.voice_dir is not None
    path = server.services.settings.voice_dir / f"{name}.wav"
    path.write_bytes(recording)
    return path


def pcm(server: SpeechServer, **fields: object) -> bytes:
    answer = server.generate(response_format="pcm", seed=1, **fields)
    assert answer.ok, answer.text
    return answer.content


def said_directly(
    token2wav: FaultyToken2Wav, checkpoint: Path, text: TextTokenizer, reply: list[int], recording: bytes
) -> bytes:
    """What token2wav makes of the reply's speech in the voice of this recording, with no server around it."""
    heard = decode_recording(recording)
    features = VoiceExtractor.from_folder(checkpoint / "token2wav").features(heard.samples, heard.sample_rate_hz)
    state = token2wav.start(token2wav.open_voice(features), seed=1)
    sizes = StreamSettings()
    plan = ChunkPlan(first_chunk_tokens=sizes.first_chunk_tokens, chunk_tokens=sizes.chunk_tokens)
    chunker = Chunker(plan, lookahead_tokens=token2wav.LOOKAHEAD_TOKENS)
    first = text.vocabulary.first_speech_id
    chunker.feed(token_id - first for token_id in reply if 0 <= token_id - first < 6561)
    chunker.finish()
    sound = b""
    while not chunker.done:
        chunk = chunker.take()
        samples, (state,) = token2wav.step(torch.tensor([chunk.tokens]), [state], last=chunk.last)
        sound += pcm16(samples[0].numpy()).tobytes()
    return sound


def test_a_reply_is_spoken_by_the_voice_that_was_asked_for(
    server: SpeechServer, token2wav: FaultyToken2Wav, checkpoint: Path, text: TextTokenizer, reply: list[int]
) -> None:
    assert add_voice(server, "anna", ANNA).ok
    assert add_voice(server, "bert", sung(110, seconds=3)).ok
    by_default, by_anna, by_bert = pcm(server), pcm(server, voice="anna"), pcm(server, voice="bert")
    assert by_anna == said_directly(token2wav, checkpoint, text, reply, ANNA)
    assert by_bert == said_directly(token2wav, checkpoint, text, reply, sung(110, seconds=3))
    assert len({by_default, by_anna, by_bert}) == 3
    assert by_default == pcm(server, voice="default")


def test_the_voice_is_a_field_of_json_and_of_both_forms(server: SpeechServer) -> None:
    assert add_voice(server, "anna", ANNA).ok
    fields = {"text": "Hello", "seed": "1", "response_format": "pcm", "voice": "anna"}
    url, in_json = f"{server.url}/generate", pcm(server, voice="anna")
    assert requests.post(url, data=fields, timeout=60).content == in_json
    multipart = {name: (None, value) for name, value in fields.items()}
    assert requests.post(url, files=multipart, timeout=60).content == in_json
    assert server.stream(seed=1, response_format="pcm", voice="anna").content == in_json


@pytest.mark.parametrize("streaming", [False, True])
def test_an_unknown_voice_is_a_400_before_any_byte_that_names_those_there_are(
    server: SpeechServer, engine: GatedEngine, streaming: bool
) -> None:
    assert add_voice(server, "anna", ANNA).ok
    for _ in range(SLOTS + 1):
        answer = server.generate(voice="Anna", streaming=streaming)
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert (error["code"], error["param"]) == ("unknown_voice", "voice")
        for word in ("'Anna'", "default", "anna", "POST /v1/voices"):
            assert word in error["message"]
    assert (server.streams_running, engine.requests) == (0, [])


def test_a_deleted_voice_is_unknown_and_may_come_back_with_another_recording(server: SpeechServer) -> None:
    assert add_voice(server, "anna", ANNA).ok
    before = pcm(server, voice="anna")
    assert delete_voice(server, "anna").ok
    assert server.generate(voice="anna").status_code == 400
    assert add_voice(server, "anna", sung(330)).status_code == 201
    assert pcm(server, voice="anna") != before


def test_a_stream_whose_voice_is_deleted_goes_on_to_its_end(server: SpeechServer, engine: GatedEngine) -> None:
    assert add_voice(server, "anna", ANNA).ok
    whole = pcm(server, voice="anna")
    engine.reset(engine.token_ids)
    engine.hold_at = 20
    with server.stream(voice="anna", seed=1, response_format="pcm") as stream:
        beginning = stream.raw.read(1000)
        assert delete_voice(server, "anna").ok
        engine.hold_at = None
        assert beginning + stream.raw.read() == whole


def test_two_requests_at_once_for_a_new_voice_open_it_once(server: SpeechServer, opener: HeldOpener) -> None:
    put(server, "anna")
    opened_before = opener.opened
    opener.go.clear()
    with ThreadPoolExecutor(2) as clients:
        answers = [clients.submit(pcm, server, voice="anna") for _ in range(2)]
        assert opener.building.wait(30)
        time.sleep(0.2)
        opener.go.set()
        assert answers[0].result() == answers[1].result()
    pcm(server, voice="anna")
    assert opener.opened == opened_before + 1


def test_while_a_voice_is_opened_everything_else_goes_on(
    server: SpeechServer, engine: GatedEngine, opener: HeldOpener
) -> None:
    """No slot is held, other voices speak, and the server answers."""
    put(server, "anna")
    opener.go.clear()
    with ThreadPoolExecutor(1) as clients:
        waiting = clients.submit(pcm, server, voice="anna")
        assert opener.building.wait(30)
        assert server.streams_running == 0
        assert engine.requests == []
        assert pcm(server)
        assert requests.get(f"{server.url}/ready", timeout=5).ok
        assert "anna" in voices_of(server)
        assert not waiting.done()
        opener.go.set()
        assert waiting.result()


def test_a_full_server_opens_no_voice(server: SpeechServer, engine: GatedEngine, opener: HeldOpener) -> None:
    put(server, "anna")
    opened_before = opener.opened
    engine.hold_at = 0
    with server.stream(), server.stream():
        answer = server.generate(voice="anna")
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "full")
        engine.hold_at = None
    assert opener.opened == opened_before


def test_a_client_that_hangs_up_on_a_new_voice_takes_nothing_with_it(
    server: SpeechServer, engine: GatedEngine, opener: HeldOpener
) -> None:
    put(server, "anna")
    opened_before = opener.opened
    opener.go.clear()
    with server.connect(json.dumps({"text": "Hello", "voice": "anna"}).encode()):
        assert opener.building.wait(30)
    opener.go.set()
    assert pcm(server, voice="anna")
    assert opener.opened == opened_before + 1, "the build that was begun was thrown away"
    assert len(engine.requests) == 1


def test_a_voice_that_cannot_be_fetched_is_a_503_and_harms_nothing(server: SpeechServer, engine: GatedEngine) -> None:
    answer = server.generate(voice="default_male")
    assert answer.status_code == 503, answer.text
    assert "default_male" in answer.json()["error"]["message"]
    assert (server.streams_running, engine.requests) == (0, [])
    assert pcm(server)


def test_a_file_that_is_no_voice_is_refused_and_harms_nothing(server: SpeechServer) -> None:
    path = put(server, "anna", b"I am a text.")
    answer = server.generate(voice="anna")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "voice_unavailable")
    assert "wav, flac" in answer.json()["error"]["message"]
    assert "anna" not in voices_of(server)
    assert server.streams_running == 0
    path.unlink()


def test_a_voice_that_takes_seconds_to_open_leaves_streams_and_the_event_loop_alone(
    server: SpeechServer, opener: HeldOpener
) -> None:
    alone = pcm(server)
    opener.busy_s = 2.0
    latest_s: list[float] = []
    adding = threading.Thread(target=add_voice, args=(server, "anna", ANNA))
    adding.start()
    assert opener.building.wait(30)
    heard = [pcm(server)]
    while adding.is_alive():
        asked_s = time.monotonic()
        assert requests.get(f"{server.url}/health", timeout=5).ok
        latest_s.append(time.monotonic() - asked_s)
        time.sleep(0.02)
    adding.join()
    assert heard == [alone]
    assert len(latest_s) > 5
    assert sorted(latest_s)[len(latest_s) // 2] < 0.2


def test_a_server_that_is_asked_to_end_does_not_wait_for_a_voice(
    checkpoint: Path, token2wav: FaultyToken2Wav, reply: list[int], tmp_path: Path
) -> None:
    (tmp_path / "anna.wav").write_bytes(ANNA)
    settings, opener = Settings(model=checkpoint, voice_dir=tmp_path), HeldOpener(token2wav)
    with speech_server(settings, GatedEngine(reply), token2wav=opener) as server, ThreadPoolExecutor(2) as clients:
        opener.building.clear()
        opener.go.clear()
        waiting = [clients.submit(server.generate, voice="anna"), clients.submit(add_voice, server, "bert", sung(330))]
        assert opener.building.wait(30)
        time.sleep(0.2)
        started = time.monotonic()
        server.stop()
        took_s = time.monotonic() - started
        opener.go.set()
        assert took_s < 3
        for answer in (client.result() for client in waiting):
            assert answer.status_code == 503
            assert "shutting down" in answer.json()["error"]["message"]
