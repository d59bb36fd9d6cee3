"""What an answer of /ready means to the launcher: only its own sidecar's counts."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from vox_serve.readiness import Readiness, readiness

PROCESS_ID = 4711
Answering = Callable[..., Readiness]


@pytest.fixture
def answering() -> Iterator[Answering]:
    """What is made of one answer of a real server."""
    servers: list[HTTPServer] = []

    def ask(status: int, body: str, process_id: int | None = PROCESS_ID) -> Readiness:
        class Answer(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(status)
                if process_id is not None:
                    self.send_header("X-Process-Id", str(process_id))
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, *words: object) -> None:
                pass

        servers.append(HTTPServer(("127.0.0.1", 0), Answer))
        threading.Thread(target=servers[-1].serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return readiness(f"http://127.0.0.1:{servers[-1].server_port}/ready", PROCESS_ID)

    yield ask
    for server in servers:
        server.shutdown()
        server.server_close()


def missing(*parts: str) -> str:
    return json.dumps({"error": {"message": "wait"}, "missing": parts})


def test_a_200_of_its_own_is_ready(answering: Answering) -> None:
    assert answering(200, "{}").ready
    another = answering(200, "{}", process_id=None)
    assert not another.ready
    assert "another server" in another.missing


@pytest.mark.parametrize(
    ("parts", "loaded"),
    [(["engine", "warm-up"], True), (["engine"], True), (["voice", "engine", "warm-up"], False), (["warm-up"], False)],
)
def test_the_sidecar_is_loaded_once_the_engine_is_the_first_that_is_missing(
    answering: Answering, parts: list[str], loaded: bool
) -> None:
    answer = answering(503, missing(*parts))
    assert answer.misses_only_the_engine is loaded
    assert (answer.ready, answer.missing) == (False, "wait")


def test_another_server_s_missing_engine_is_not_ours(answering: Answering) -> None:
    assert not answering(503, missing("engine"), process_id=1).misses_only_the_engine
    assert not answering(503, missing("engine"), process_id=None).misses_only_the_engine


@pytest.mark.parametrize("body", ["", "[]", '{"error": 1}', '{"error": {"message": "x"}, "missing": 3}'])
def test_an_answer_that_cannot_be_read_is_no_readiness(answering: Answering, body: str) -> None:
    answer = answering(503, body)
    assert not answer.ready
    assert not answer.misses_only_the_engine
    assert "answers 503" in answer.missing


def test_where_nobody_answers_nothing_is_said(free_port: int) -> None:
    assert readiness(f"http://127.0.0.1:{free_port}/ready", PROCESS_ID) == Readiness()
