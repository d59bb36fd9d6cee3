"""Multipart forms, on every route that takes them."""

from __future__ import annotations

import time

import pytest
import requests
from speech_server import SpeechServer

ROUTES = ["/generate", "/v1/voices", "/v1/audio/transcriptions"]


def send(server: SpeechServer, route: str, charset: str, value: bytes) -> requests.Response:
    part = b'--x\r\nContent-Disposition: form-data; name="text"\r\n\r\n' + value + b"\r\n--x--\r\n"
    headers = {"Content-Type": f"multipart/form-data; charset={charset}; boundary=x"}
    return requests.post(f"{server.url}{route}", data=part, headers=headers, timeout=60)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("charset", ["punycode", "undefined", "no-such-charset"])
def test_a_charset_that_costs_more_than_reading_is_refused_at_once(
    server: SpeechServer, route: str, charset: str
) -> None:
    started = time.monotonic()
    answer = send(server, route, charset, b"a" * 500_000)
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")
    assert f"charset is '{charset}'; send UTF-8" in answer.json()["error"]["message"]
    assert time.monotonic() - started < 2


@pytest.mark.parametrize("charset", ["utf-8", '"UTF-8"', "us-ascii"])
def test_utf_8_may_be_named(server: SpeechServer, charset: str) -> None:
    assert send(server, "/generate", charset, "Grüße".encode()).ok


@pytest.mark.parametrize("route", ROUTES)
def test_a_body_that_is_no_form_is_a_400(server: SpeechServer, route: str) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    answer = requests.post(f"{server.url}{route}", data=b"\0" * 100, headers=headers, timeout=60)
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")
    assert "form cannot be read" in answer.json()["error"]["message"]
