"""What POST /generate answers, whole and streamed."""

from __future__ import annotations

import io
import wave
from dataclasses import replace
from urllib.parse import unquote

import numpy as np
import pytest
import requests
import torch
from speech_parts import GatedEngine, spoken_reply
from speech_server import SpeechServer
from tiny_token2wav import signal_to_noise_db

from sidecar.audio.encode import UNKNOWN_SIZE, wav_header
from sidecar.engine.text import TextTokenizer
from sidecar.settings import EngineSettings, PromptSettings, SamplingSettings
from sidecar.timebase import tokens_to_samples

SPEECH_TOKENS = 40
HEADER_BYTES = 44
PCM_BYTES = 2 * tokens_to_samples(SPEECH_TOKENS)


def test_a_text_is_answered_with_a_whole_wav_file(server: SpeechServer) -> None:
    answer = server.generate()
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "audio/wav"
    assert int(answer.headers["content-length"]) == len(answer.content) == HEADER_BYTES + PCM_BYTES
    with wave.open(io.BytesIO(answer.content)) as sound:
        assert (sound.getframerate(), sound.getnchannels(), sound.getsampwidth()) == (24_000, 1, 2)
        assert sound.getnframes() == tokens_to_samples(SPEECH_TOKENS)
    assert np.abs(np.frombuffer(answer.content[HEADER_BYTES:], "<i2")).max() > 0


def test_a_whole_answer_tells_what_was_said_and_why_it_ended(server: SpeechServer, engine: GatedEngine) -> None:
    headers = server.generate(seed=5).headers
    assert unquote(headers["X-Transcript"]) == "Good morning."
    assert headers["X-Finish-Reason"] == "stop"
    assert headers["X-Seed"] == "5"
    assert headers["X-Request-Id"] == engine.requests[-1].request_id
    assert 'filename="speech-' in headers["Content-Disposition"] and ".wav" in headers["Content-Disposition"]
    assert "X-Transcript-Truncated" not in headers
    engine.finish_reason = "length"
    assert server.generate().headers["X-Finish-Reason"] == "length"


def test_a_long_transcript_is_cut_between_characters(
    server: SpeechServer, engine: GatedEngine, text: TextTokenizer
) -> None:
    words = "a" + "语" * 1000
    engine.reset(spoken_reply(text, words, 4))
    headers = server.generate().headers
    assert headers["X-Transcript-Truncated"] == "1"
    assert 5990 < len(headers["X-Transcript"]) <= 6000
    assert words.startswith(unquote(headers["X-Transcript"], errors="strict"))


def test_the_header_leaves_as_a_chunk_of_its_own_before_any_token(server: SpeechServer, engine: GatedEngine) -> None:
    engine.hold_at = 0
    with server.connect(b'{"text": "Hello", "streaming": true}') as connection:
        received = b""
        while b"\r\n\r\n2c\r\n" not in received or len(received.partition(b"2c\r\n")[2]) < HEADER_BYTES:
            received += connection.recv(1000)
        head, _, body = received.partition(b"\r\n\r\n")
        assert engine.tokens_said == 0
    assert body == b"2c\r\n" + wav_header(None) + b"\r\n"
    assert body.count(UNKNOWN_SIZE.to_bytes(4, "little")) == 2
    assert head.startswith(b"HTTP/1.1 200 OK")
    for name in (b"x-request-id: ", b"x-seed: ", b"transfer-encoding: chunked"):
        assert name in head.lower()


def test_the_first_sound_leaves_before_the_last_speech_token_is_generated(
    server: SpeechServer, engine: GatedEngine
) -> None:
    engine.hold_at = 20
    with server.stream() as answer:
        sound = answer.raw.read(HEADER_BYTES + 1000)
        assert engine.tokens_said <= 20 < len(engine.token_ids)
        assert engine.running == 1
        engine.hold_at = None
        rest = answer.raw.read()
    assert len(sound) + len(rest) == HEADER_BYTES + PCM_BYTES


@pytest.mark.parametrize("delta_tokens", [1, 7, 1000])
def test_streamed_and_whole_carry_the_same_sound(server: SpeechServer, engine: GatedEngine, delta_tokens: int) -> None:
    whole = server.generate(seed=7).content[HEADER_BYTES:]
    engine.delta_tokens = delta_tokens
    assert server.stream(seed=7).content[HEADER_BYTES:] == whole
    assert server.generate(seed=7, response_format="pcm").content == whole
    assert server.stream(seed=7, response_format="pcm").content == whole


def test_different_seeds_sound_different_and_a_drawn_seed_is_told(server: SpeechServer, engine: GatedEngine) -> None:
    first, second = server.generate(), server.generate()
    assert first.headers["X-Seed"] != second.headers["X-Seed"]
    assert first.content != second.content
    again = server.generate(seed=int(first.headers["X-Seed"]))
    assert again.content == first.content
    assert engine.requests[-1].sampling.seed == int(first.headers["X-Seed"])


def test_bare_samples_say_their_rate(server: SpeechServer) -> None:
    answer = server.generate(response_format="pcm")
    assert answer.headers["content-type"] == "audio/pcm; rate=24000; channels=1; bits=16"
    assert ".pcm" in answer.headers["Content-Disposition"]
    assert len(answer.content) == PCM_BYTES


@pytest.mark.parametrize("tokens", [1, 2, 3, 9, 13])
def test_short_replies_are_spoken_to_their_end(
    server: SpeechServer, engine: GatedEngine, text: TextTokenizer, tokens: int
) -> None:
    engine.reset(spoken_reply(text, "Hm", tokens))
    assert len(server.generate(response_format="pcm").content) == 2 * tokens_to_samples(tokens)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_reply_without_speech_is_an_empty_recording_and_a_warning(
    server: SpeechServer, engine: GatedEngine, text: TextTokenizer, caplog: pytest.LogCaptureFixture, streaming: bool
) -> None:
    engine.reset([text.vocabulary.tts_end, text.vocabulary.end_of_turn])
    answer = server.generate(streaming=streaming)
    assert answer.status_code == 200
    assert answer.content == wav_header(None if streaming else 0)
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert any("no speech" in line and answer.headers["X-Request-Id"] in line for line in warnings)


def test_the_log_has_one_line_for_each_request(server: SpeechServer, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        request_id = server.generate(surprise=1, speed=2).headers["X-Request-Id"]
    lines = [record.getMessage() for record in caplog.records if request_id in record.getMessage()]
    ended = [line for line in lines if line.startswith("speech ended")]
    assert len(ended) == 1
    for word in ("ttfa_ms=", "rtf=", "audio_s=1.60", "ended=stop"):
        assert word in ended[0]
    assert any("'surprise', 'speed'" in line for line in lines)


def test_the_engine_is_asked_as_the_models_authors_do(server: SpeechServer, engine: GatedEngine) -> None:
    server.generate(text="  Hello  ")
    asked = engine.requests[-1]
    assert asked.messages == [
        {"role": "system", "content": "Read this paragraph at a natural pace."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "<tts_start>"},
    ]
    sampling = replace(asked.sampling, seed=0)
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.7, 0.9, -1, 0.0)
    assert (sampling.repetition_penalty, sampling.max_tokens) == (1.05, 4096)


def test_fields_go_before_the_servers_settings(server: SpeechServer, engine: GatedEngine) -> None:
    server.generate(
        system_prompt="Whisper.", temperature=0, top_p=0.5, top_k=3, min_p=0.1, repetition_penalty=1.2, max_tokens=50
    )
    asked = engine.requests[-1]
    assert asked.messages[0]["content"] == "Whisper."
    sampling = asked.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0, 0.5, 3, 0.1)
    assert (sampling.repetition_penalty, sampling.max_tokens) == (1.2, 50)


def test_the_servers_settings_go_before_the_authors(start_server, text: TextTokenizer) -> None:
    prompts = PromptSettings(system_prompt="Be brief.", tts_system_prompt="Sing.")
    sampling = SamplingSettings(greedy=True, seed=11, max_tokens=300)
    with start_server(prompts=prompts, sampling=sampling) as server:
        assert server.generate().headers["X-Seed"] == "11"
        asked = server.engine.requests[-1]
        assert asked.messages[0]["content"] == "Sing."
        assert (asked.sampling.temperature, asked.sampling.max_tokens, asked.sampling.seed) == (0, 300, 11)


def test_a_reply_has_the_room_that_the_prompt_leaves(start_server, text: TextTokenizer) -> None:
    with start_server(engine=EngineSettings(max_model_len=100)) as server:
        server.generate()
        prompt = "<|BOT|>system\nRead this paragraph at a natural pace.<|EOT|><|BOT|>human\nHello<|EOT|>"
        prompt_tokens = text.count(prompt + "<|BOT|>assistant\n<tts_start>")
        assert server.engine.requests[-1].sampling.max_tokens == 100 - 1 - prompt_tokens
        refused = server.generate(text="word " * 100)
        assert refused.status_code == 400
        assert refused.json()["error"]["code"] == "context_length_exceeded"


def test_a_form_is_taken_like_json(server: SpeechServer) -> None:
    in_json = server.generate(seed=3).content
    fields = {"text": "Hello", "seed": "3", "streaming": "no"}
    assert requests.post(f"{server.url}/generate", data=fields, timeout=30).content == in_json
    parts = {name: (None, value) for name, value in fields.items()}
    assert requests.post(f"{server.url}/generate", files=parts, timeout=30).content == in_json


@pytest.mark.parametrize("body", ["text=h\u00e9llo 你", "text=h%C3%A9llo+%E4%BD%A0"])
def test_a_urlencoded_text_is_utf_8_escaped_or_not(server: SpeechServer, engine: GatedEngine, body: str) -> None:
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    assert requests.post(f"{server.url}/generate", data=body.encode(), headers=headers, timeout=30).ok
    assert engine.requests[-1].messages[1]["content"] == "h\u00e9llo 你"


def test_json_that_curl_calls_a_form_is_taken_as_json(server: SpeechServer) -> None:
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    answer = requests.post(f"{server.url}/generate", data='{"text": "Hello"}', headers=headers, timeout=30)
    assert answer.status_code == 200


def test_two_requests_at_once_both_sound_as_alone(server: SpeechServer) -> None:
    alone = {seed: server.generate(seed=seed).content[HEADER_BYTES:] for seed in (1, 2, 3)}
    streams = {seed: server.stream(seed=seed) for seed in alone}
    for seed, stream in streams.items():
        together, expected = (
            torch.frombuffer(bytearray(pcm), dtype=torch.int16) for pcm in (stream.content[HEADER_BYTES:], alone[seed])
        )
        assert together.shape == expected.shape
        # who shares a step rounds otherwise than who is alone in it
        assert signal_to_noise_db(together, expected) > 40
