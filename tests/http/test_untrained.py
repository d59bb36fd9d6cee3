"""The `full` synthetic checkpoint speaks as much as a trained one; every other checkpoint is asked as always."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from stub_engine import DONE, RawAnswer, ids, opening, stub_engine

from sidecar.engine.client import EngineRequest, Sampling
from sidecar.engine.http import HttpEngine, open_engine_http
from sidecar.engine.text import TextTokenizer
from sidecar.engine.untrained import sampling_of_untrained
from step_audio_vllm.synthetic import write_checkpoint


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("full")
    write_checkpoint(folder, "full")
    return folder


def test_four_of_five_tokens_are_speech_and_none_is_an_end(full: Path) -> None:
    fields = sampling_of_untrained(full)
    words = TextTokenizer.from_folder(full).vocabulary
    spoken = [token for token in fields["allowed_token_ids"] if words.speech_code(token) is not None]
    others = set(fields["allowed_token_ids"]) - set(spoken)
    assert len(fields["allowed_token_ids"]) == len(spoken) + len(others) <= 1024
    assert 0.79 < len(spoken) / len(fields["allowed_token_ids"]) < 0.81
    assert not others & words.stop_ids
    assert not any(words.is_silent(token) for token in others)
    assert fields["ignore_eos"] is True


def test_a_checkpoint_with_weights_is_asked_as_always(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, "tiny")
    assert sampling_of_untrained(tmp_path) == {}
    assert sampling_of_untrained(tmp_path / "nothing") == {}


def test_the_fields_go_with_every_request() -> None:
    async def answer(_: object) -> RawAnswer:
        return RawAnswer([opening(), ids([1], "stop"), DONE])

    async def ask(url: str) -> None:
        sampling = Sampling(
            temperature=0.0, top_p=1.0, top_k=-1, min_p=0.0, repetition_penalty=1.0, max_tokens=16, seed=1
        )
        async with open_engine_http(url=url) as http:
            engine = HttpEngine(http, {"ignore_eos": True})
            _ = [item async for item in engine.generate(EngineRequest("r", [], sampling))]

    with stub_engine(answer) as engine:
        asyncio.run(ask(engine.url))
    sent = json.loads(engine.seen[0][2])
    assert (sent["ignore_eos"], sent["max_tokens"]) == (True, 16)
