"""Alive, ready, measured; starting and ending."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import requests
from speech_parts import GatedEngine, spoken_reply
from speech_server import SpeechServer, speech_server, wait_until
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from stub_engine import DONE, RawAnswer, ids, opening, stub_engine

from sidecar.__main__ import main
from sidecar.engine.text import TextTokenizer
from sidecar.metrics import Counter
from sidecar.settings import ENGINE_PART, EngineSettings, Settings


def test_health_says_that_the_process_is_alive(server: SpeechServer) -> None:
    answer = requests.get(f"{server.url}/health", timeout=5)
    assert (answer.status_code, answer.json()) == (200, {"status": "alive"})


def test_ready_follows_the_engine_as_it_goes_and_comes_back(server: SpeechServer, engine: GatedEngine) -> None:
    assert requests.get(f"{server.url}/ready", timeout=5).ok
    engine.ready = False
    answer = requests.get(f"{server.url}/ready", timeout=5)
    assert answer.status_code == 503
    assert "language model" in answer.json()["error"]["message"]
    assert answer.json()["missing"] == [ENGINE_PART]
    engine.ready = True
    assert requests.get(f"{server.url}/ready", timeout=5).ok


def test_a_server_that_is_ready_says_which_process_it_is(server: SpeechServer) -> None:
    assert requests.get(f"{server.url}/ready", timeout=5).headers["X-Process-Id"] == str(os.getpid())


def missing(server: SpeechServer) -> list[str]:
    answer = requests.get(f"{server.url}/ready", timeout=5)
    assert answer.headers["X-Process-Id"] == str(os.getpid())
    return list(answer.json()["missing"])


def test_until_a_first_sentence_is_spoken_health_answers_and_the_rest_says_what_is_missing(
    checkpoint: Path, reply: list[int]
) -> None:
    engine = GatedEngine(reply)
    engine.ready = False
    with speech_server(Settings(model=checkpoint), engine, until_ready=False) as server:
        assert requests.get(f"{server.url}/health", timeout=5).ok
        answer = requests.get(f"{server.url}/ready", timeout=5)
        assert answer.status_code == 503
        assert int(answer.headers["Retry-After"]) > 0
        for words in ("language model", "first sentence"):
            assert words in answer.json()["error"]["message"]
        wait_until(lambda: missing(server)[0] == ENGINE_PART, within_s=60)  # who starts it may do so now
        assert missing(server) == [ENGINE_PART, "warm-up"]
        assert server.generate().status_code == 503
        assert engine.requests == []
        engine.hold_at, engine.ready = 20, True
        wait_until(lambda: len(engine.requests) == 1, within_s=60)
        answer = requests.get(f"{server.url}/ready", timeout=5)
        assert answer.json()["error"]["message"] == "a first sentence is being spoken"
        engine.hold_at = None
        wait_until(lambda: requests.get(f"{server.url}/ready", timeout=5).ok, within_s=60)
        assert "sidecar_audio_seconds_total 0\n" in server.services.metrics.render(), "nobody asked for that sentence"


def test_metrics_count_requests_sound_and_times(start_server: Any) -> None:
    with start_server() as server:
        server.generate()
        _ = server.stream().content
        server.generate(text="")
        wait_until(lambda: "sidecar_loop_lag_seconds_count 0\n" not in server.services.metrics.render(), within_s=5)
        answer = requests.get(f"{server.url}/metrics", timeout=5)
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = answer.text.splitlines()
    for line in (
        'sidecar_requests_total{outcome="stop"} 2',
        'sidecar_requests_total{outcome="invalid_request_error"} 1',
        "sidecar_ttfa_seconds_count 2",
        'sidecar_ttfa_seconds_bucket{le="+Inf"} 2',
        "sidecar_rtf_ratio_count 2",
        "sidecar_audio_seconds_total 3.2",
        "sidecar_streams_running 0",
        "sidecar_stream_slots 16",
        "sidecar_chunks_waiting 0",
        # with the warm-up's: three replies of four chunks, each alone
        'sidecar_step_seconds_count{chunk="first"} 3',
        'sidecar_step_seconds_count{chunk="later"} 9',
        'sidecar_step_streams_bucket{chunk="later",le="1"} 9',
        'sidecar_step_streams_sum{chunk="later"} 9',
    ):
        assert line in lines
    assert all(line.startswith(("# HELP sidecar_", "# TYPE sidecar_", "sidecar_")) for line in lines)


def test_a_counter_keeps_all_its_digits() -> None:
    counter = Counter("sidecar_somethings_total", "Somethings.")
    counter.add(12_345_678)
    assert list(counter.lines()) == ["sidecar_somethings_total 12345678"]
    counter.add(0.25)
    assert list(counter.lines()) == ["sidecar_somethings_total 12345678.25"]


@pytest.mark.parametrize(("hold_at", "cut_short"), [(None, False), (20, True)])
def test_ending_lets_streams_end_and_cuts_those_that_take_too_long(
    start_server: Any, hold_at: int | None, cut_short: bool
) -> None:
    with start_server() as server:
        server.engine.reset(server.engine.token_ids)
        server.engine.hold_at = 20
        pieces = server.stream().iter_content(1000)
        received = len(next(pieces)) + len(next(pieces))
        started = time.monotonic()
        server.server.should_exit = True
        time.sleep(0.5)
        server.engine.hold_at = hold_at
        if cut_short:
            with pytest.raises(requests.exceptions.ChunkedEncodingError):
                _ = list(pieces)
        else:
            assert received + sum(map(len, pieces)) == 44 + 2 * 40 * 960
        server.thread.join(10)
        assert not server.thread.is_alive()
        assert time.monotonic() - started < 5
        assert server.engine.running == 0


# the process


def engine_answering(token_ids: list[int]) -> Any:
    async def answer(request: Request) -> Response:
        if request.url.path == "/v1/models":
            return JSONResponse({"data": [{"id": "m", "max_model_len": 2048}]})
        if request.url.path == "/health":
            return Response()
        return RawAnswer([opening(), ids(token_ids, "stop"), DONE])

    return answer


def test_the_process_serves_over_http_and_ends_within_5_s_of_sigterm(
    checkpoint: Path, text: TextTokenizer, free_port: int
) -> None:
    with stub_engine(engine_answering(spoken_reply(text, "Hi", 20))) as engine:
        words = ["--model", str(checkpoint), "--port", str(free_port), "--engine-url", engine.url]
        environment = {**os.environ, "STEP_AUDIO_ENGINE_KEY": "secret", "OMP_NUM_THREADS": "2"}
        process = subprocess.Popen(
            [sys.executable, "-m", "sidecar", *words], env=environment, stderr=subprocess.PIPE, text=True
        )
        try:
            url = f"http://127.0.0.1:{free_port}"
            wait_until(lambda: answers(f"{url}/ready"), within_s=90)
            assert requests.post(f"{url}/generate", json={"text": "Hello"}, timeout=30).ok
            process.send_signal(signal.SIGTERM)
            log = process.communicate(timeout=5)[1]
        finally:
            process.kill()
        assert process.returncode in (0, -signal.SIGTERM)
        assert all(headers["authorization"] == "Bearer secret" for _, headers, _ in engine.seen)
    assert "Traceback" not in log
    assert "secret" not in log
    assert log.count("speech ended") == 2  # the first sentence's, and ours


def answers(url: str) -> bool:
    try:
        return requests.get(url, timeout=5).ok
    except requests.RequestException:
        return False


def test_a_taken_port_is_one_sentence(checkpoint: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        words = ["--model", str(checkpoint), "--port", str(port), "--engine-url", "http://127.0.0.1:1"]
        ended = subprocess.run(
            [sys.executable, "-m", "sidecar", *words], capture_output=True, text=True, timeout=60, check=False
        )
    assert ended.returncode == 1
    assert ended.stderr == f"sidecar: port {port} of 127.0.0.1 is taken; stop what listens there, or give --port\n"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "--model is missing"),
        (["--model", "/not/there", "--engine-url", "http://a"], "no folder token2wav"),
        (["--model", "MODEL"], "give --engine-socket or --engine-url"),
        (["--model", "MODEL", "--engine-url", "http://a", "--top-p", "7"], "--top-p is 7"),
        (["--model", "MODEL", "--engine-url", "http://a", "--host", "192.0.2.1"], "cannot listen on 192.0.2.1"),
    ],
)
def test_what_cannot_start_says_so_in_one_sentence(checkpoint: Path, words: list[str], sentence: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main([str(checkpoint) if word == "MODEL" else word for word in words])
    assert isinstance(ended.value.code, str) and ended.value.code.startswith("sidecar: ")
    assert sentence in ended.value.code and "\n" not in ended.value.code


def test_a_checkpoint_that_cannot_be_loaded_ends_the_process(
    checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for file in checkpoint.rglob("*"):
        if file.is_file() and file.name != "hift.pt":
            copy = tmp_path / file.relative_to(checkpoint)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.symlink_to(file)
    settings = Settings(model=tmp_path, engine=EngineSettings(engine_url="http://127.0.0.1:1"))
    with speech_server(settings, GatedEngine(), until_ready=False) as server:
        server.thread.join(30)
        assert not server.thread.is_alive()
        assert server.server.failed.is_set()
    assert any("hift.pt" in record.getMessage() for record in caplog.records if record.levelname == "ERROR")
