"""A client that goes stops the language model and frees its slot within a second."""

from __future__ import annotations

import json
import socket

import pytest
from speech_fixtures import StartServer
from speech_parts import GatedEngine
from speech_server import SpeechServer, wait_until

WITHIN_S = 1.0


def ask(server: SpeechServer, *, streaming: bool) -> socket.socket:
    return server.connect(json.dumps({"text": "Hello", "streaming": streaming}).encode())


def assert_all_is_freed(server: SpeechServer, engine: GatedEngine) -> None:
    wait_until(lambda: engine.running == 0 and engine.waiting == 0 and server.streams_running == 0, within_s=WITHIN_S)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("tokens", [0, 20])
def test_hanging_up_while_the_model_speaks_frees_the_slot(
    server: SpeechServer, engine: GatedEngine, streaming: bool, tokens: int
) -> None:
    engine.hold_at = tokens
    with ask(server, streaming=streaming):
        wait_until(lambda: engine.running == 1 and engine.tokens_said == tokens, within_s=10)
        assert server.streams_running == 1
    assert_all_is_freed(server, engine)
    assert engine.tokens_said == tokens


def test_hanging_up_before_the_engine_accepts_frees_the_slot(server: SpeechServer, engine: GatedEngine) -> None:
    engine.hold_acceptance = True
    with ask(server, streaming=True):
        wait_until(lambda: engine.waiting == 1, within_s=10)
        assert server.streams_running == 1
    assert_all_is_freed(server, engine)


def test_a_client_that_stays_but_takes_nothing_is_cut_off(start_server: StartServer) -> None:
    with start_server(stalled_after_s=1) as server:
        assert isinstance(server.engine, GatedEngine)
        server.engine.reset(server.engine.token_ids)
        server.engine.hold_at = 20
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)  # the smallest there is
            connection.connect(("127.0.0.1", server.port))
            server.ask(connection, b'{"text": "Hello", "streaming": true}')
            wait_until(lambda: server.engine.tokens_said == 20, within_s=10)
            assert server.streams_running == 1
            wait_until(lambda: server.streams_running == 0, within_s=10)
        assert server.engine.running == 0


def test_hanging_up_is_in_the_log_and_in_the_numbers(
    server: SpeechServer, engine: GatedEngine, caplog: pytest.LogCaptureFixture
) -> None:
    engine.hold_at = 20
    with caplog.at_level("INFO"):
        with server.stream() as answer:
            answer.raw.read(1000)
        assert_all_is_freed(server, engine)
    request_id = answer.headers["X-Request-Id"]
    lines = [record.getMessage() for record in caplog.records if request_id in record.getMessage()]
    assert [line.partition("ended=")[2] for line in lines] == ["hang_up"]
    assert not any(record.exc_info for record in caplog.records)
    assert 'sidecar_requests_total{outcome="hang_up"}' in server.services.metrics.render()


def test_a_client_that_goes_in_the_middle_of_its_body_is_no_error(
    server: SpeechServer, engine: GatedEngine, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        head = "POST /generate HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 100"
        connection.sendall(f'{head}\r\n\r\n{{"text"'.encode())
    assert server.generate().ok
    assert not any(record.levelname == "ERROR" for record in caplog.records)
