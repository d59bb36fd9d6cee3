"""A reply whose sound breaks in the middle, beside others that don't: it ends alone, and says so."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from pathlib import Path

import pytest
import requests
import torch
from speech_parts import spoken_reply
from speech_server import SpeechServer, speech_server, wait_until
from tiny_token2wav import assert_sounds_like

from sidecar.engine.client import Accepted, EngineRequest, TokenDelta
from sidecar.engine.scripted import ScriptedEngine
from sidecar.engine.text import TextTokenizer
from sidecar.settings import Settings
from sidecar.token2wav.token2wav import Token2Wav
from sidecar.voices.library import VoiceLibrary

BROKEN_SEED = 13
#: A speech token whose row in the embedding is poisoned, and where in the reply it stands: in the second chunk.
POISON, PLACE = 4218, 20
SPEECH_TOKENS = 40


class EngineOfTwoReplies(ScriptedEngine):
    """Says the poisoned reply to requests with one seed, and the same without the poison to all others."""

    def __init__(self, healthy: list[int], broken: list[int]) -> None:
        super().__init__(healthy)
        self.broken = broken

    async def generate(self, request: EngineRequest) -> AsyncGenerator[Accepted | TokenDelta, None]:
        ids = self.broken if request.sampling.seed == BROKEN_SEED else self.token_ids
        async with aclosing(ScriptedEngine(ids, delta_s=0.002).generate(request)) as items:
            async for item in items:
                yield item


@pytest.fixture(scope="module")
def poisoned(checkpoint: Path, text: TextTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SpeechServer]:
    token2wav = Token2Wav.from_folder(checkpoint / "token2wav")
    token2wav.flow.network.input_embedding.weight[POISON] = torch.nan
    reply = spoken_reply(text, "Good morning.", SPEECH_TOKENS)
    speech = [place for place, token in enumerate(reply) if token >= text.vocabulary.first_speech_id]
    broken = list(reply)
    broken[speech[PLACE]] = text.vocabulary.first_speech_id + POISON
    assert text.vocabulary.first_speech_id + POISON not in reply
    parts = {
        "token2wav": token2wav,
        "voices": VoiceLibrary(token2wav, checkpoint, cache_dir=tmp_path_factory.mktemp("cache")),
    }
    with speech_server(Settings(model=checkpoint), EngineOfTwoReplies(reply, broken), **parts) as server:
        yield server


def streamed(server: SpeechServer, seed: int) -> tuple[bytes, bool]:
    """The body as far as it came, and whether it was cut short."""
    received = b""
    with server.stream(seed=seed) as answer:
        assert answer.status_code == 200
        try:
            for piece in answer.iter_content(None):
                received += piece
        except requests.exceptions.ChunkedEncodingError:
            return received, True
    return received, False


def test_a_whole_reply_that_breaks_is_an_error_that_says_what_to_do(poisoned: SpeechServer) -> None:
    answer = poisoned.generate(seed=BROKEN_SEED)
    assert answer.status_code == 500
    error = answer.json()["error"]
    assert error["code"] == "synthesis_failed"
    assert error["type"] == "server_error"
    assert "not finite numbers; try again with another seed" in error["message"]


def test_a_streamed_reply_that_breaks_gives_what_was_sound_and_is_cut_short(poisoned: SpeechServer) -> None:
    received, cut_short = streamed(poisoned, BROKEN_SEED)
    assert cut_short, "the closing chunk is missing, so a client can tell"
    # the same tokens until the poison, but another seed: as long as the first chunk, and not silent
    whole, _ = streamed(poisoned, 1)
    assert 44 < len(received) < len(whole)
    assert any(received[44:])


@pytest.mark.parametrize("broken_streams", [True, False])
def test_healthy_replies_beside_broken_ones_sound_as_alone(poisoned: SpeechServer, broken_streams: bool) -> None:
    seeds = [1, 2, 3]
    alone = [poisoned.generate(seed=seed).content for seed in seeds]
    assert len(set(alone)) == len(seeds)
    with ThreadPoolExecutor(6) as clients:
        ask_broken = streamed if broken_streams else lambda server, seed: server.generate(seed=seed).status_code
        broken = [clients.submit(ask_broken, poisoned, BROKEN_SEED) for _ in range(3)]
        healthy = [clients.submit(streamed, poisoned, seed) for seed in seeds]
        for answer, body in zip(healthy, alone, strict=True):
            assert_sounds_like(answer.result()[0], body)
        assert not any(answer.result()[1] for answer in healthy)
        assert all(answer.result()[1] if broken_streams else answer.result() == 500 for answer in broken)
    wait_until(lambda: poisoned.streams_running == 0, within_s=10)


@pytest.mark.parametrize("streaming", [True, False])
def test_a_broken_reply_is_in_the_log_and_in_the_numbers_by_its_request(
    poisoned: SpeechServer, caplog: pytest.LogCaptureFixture, streaming: bool
) -> None:
    def failures() -> int:
        lines = poisoned.services.metrics.render().splitlines()
        return sum(int(line.split()[-1]) for line in lines if "synthesis_failed" in line and not line.startswith("#"))

    before = failures()
    with caplog.at_level(logging.INFO):
        answer = poisoned.stream(seed=BROKEN_SEED) if streaming else poisoned.generate(seed=BROKEN_SEED)
        with answer, pytest.raises(requests.exceptions.ChunkedEncodingError) if streaming else answer:
            assert answer.content
        wait_until(lambda: "ended=synthesis_failed" in caplog.text, within_s=10)
    request_id = answer.headers["X-Request-Id"]
    ended = [record for record in caplog.records if "speech ended" in record.getMessage()]
    assert [record.levelname for record in ended] == ["ERROR"]
    assert request_id in ended[0].getMessage()
    assert "not finite" in ended[0].getMessage()
    assert failures() == before + 1
