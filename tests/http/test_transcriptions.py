"""`/v1/audio/transcriptions` and `/v1/audio/translations` on our port: what goes to vLLM, what comes of its JSON."""

from __future__ import annotations

import email.parser
import email.policy
import io
import json
import math
import wave
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import numpy as np
import pytest
import soundfile
from golden_folders import DATA
from relay_front import front
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from stub_engine import DONE, RawAnswer, StubEngine, event, stub_engine
from vllm_server import VllmServer

from sidecar.api.transcriptions import ROUTES

TRANSCRIBE = "/v1/audio/transcriptions"
TRANSLATE = "/v1/audio/translations"
REPLY = {"text": "Good day <b>", "usage": {"type": "duration", "seconds": 1}}
GREEDY = {"temperature": ["0"], "repetition_penalty": ["1"], "max_completion_tokens": ["2048"]}


@contextmanager
def engine_and_front(answer: Response | None = None, **limits: Any) -> Iterator[tuple[StubEngine, str]]:
    async def reply(_: Request) -> Response:
        return answer or JSONResponse(REPLY)

    with stub_engine(reply) as engine, front(ROUTES, engine.url, **limits) as url:
        yield engine, url


def wav(seconds: float = 1.0, rate_hz: int = 16_000, subtype: str = "PCM_16", value: float = 0.25) -> bytes:
    sink = io.BytesIO()
    soundfile.write(sink, np.full(round(seconds * rate_hz), value), rate_hz, format="WAV", subtype=subtype)
    return sink.getvalue()


def ask(url: str, path: str = TRANSCRIBE, recording: bytes | None = None, **fields: Any) -> httpx.Response:
    files = {"file": ("a.wav", wav() if recording is None else recording)}
    return httpx.post(url + path, files=files, data=fields, timeout=120)


def form_of(engine: StubEngine) -> tuple[dict[str, list[str]], bytes]:
    """The fields and the recording of the form that the engine got."""
    ((_, headers, body),) = engine.seen
    whole = f"content-type: {headers['content-type']}\r\n\r\n".encode() + body
    fields: dict[str, list[str]] = {}
    recording = b""
    for part in email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(whole).iter_parts():
        content = part.get_payload(decode=True)
        assert isinstance(content, bytes)
        name = str(part.get_param("name", header="content-disposition"))
        if name == "file":
            recording = content
        else:
            fields.setdefault(name, []).append(content.decode())
    return fields, recording


# what goes to vLLM


def test_a_recording_is_transcribed_greedily_unless_the_client_says_otherwise() -> None:
    with engine_and_front() as (engine, url):
        ask(url)
    assert form_of(engine)[0] == {**GREEDY, "response_format": ["json"]}
    with engine_and_front() as (engine, url):
        ask(url, temperature="0.1", max_completion_tokens="5", model="m", language="ja", stream="false")
    expected = {"temperature": ["0.1"], "max_completion_tokens": ["5"], "model": ["m"], "language": ["ja"]}
    assert form_of(engine)[0] == {**GREEDY, **expected, "stream": ["false"], "response_format": ["json"]}


@pytest.mark.parametrize("path", [TRANSCRIBE, TRANSLATE])
def test_sound_reaches_the_engine_as_16_khz_mono_pcm(path: str) -> None:
    with engine_and_front() as (engine, url):
        assert ask(url, path, wav(0.5, 8000)).json() == REPLY
    assert engine.seen[0][0] == path
    with wave.open(io.BytesIO(form_of(engine)[1])) as heard:
        assert (heard.getframerate(), heard.getnchannels(), heard.getsampwidth()) == (16_000, 1, 2)
        assert heard.getnframes() == 8000


@pytest.mark.parametrize(
    ("fields", "language"),
    [({}, "en"), ({"language": "zh"}, "en"), ({"language": "en", "to_language": "zh"}, "zh")],
)
def test_the_parts_of_a_translation_are_joined_as_its_own_language_is_written(
    fields: dict[str, str], language: str
) -> None:
    with engine_and_front() as (engine, url):
        ask(url, TRANSLATE, **fields)
    sent = form_of(engine)[0]
    assert sent["language"] == [language]
    assert sent.get("to_language") == ([fields["to_language"]] if "to_language" in fields else None)


def test_empty_fields_count_as_not_sent() -> None:
    with engine_and_front() as (engine, url):
        assert ask(url, temperature="", language="", response_format="").status_code == 200
    assert form_of(engine)[0] == {**GREEDY, "response_format": ["json"]}


# what is refused


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": "<|EOT|>"}, "prompt"),
        ({"hotwords": "<audio_1>"}, "hotwords"),
        ({"prompt": "a" * 21}, "prompt"),
        ({"vllm_xargs": "{}"}, "vllm_xargs"),
        ({"timestamp_granularities[]": "word"}, "timestamp_granularities[]"),
        ({"include[]": "logprobs"}, "include[]"),
        ({"response_format": "srt"}, "response_format"),
        ({"response_format": "vtt"}, "response_format"),
        ({"response_format": "diarized_json"}, "response_format"),
        ({"response_format": "verbose_json", "stream": "True"}, "response_format"),
    ],
)
@pytest.mark.parametrize("path", [TRANSCRIBE, TRANSLATE])
def test_what_cannot_be_had_is_refused_by_its_field(path: str, fields: dict[str, str], param: str) -> None:
    with engine_and_front(max_text_characters=20) as (engine, url):
        answer = ask(url, path, **fields)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert engine.seen == []


def test_a_refused_format_names_those_that_are_offered() -> None:
    with engine_and_front() as (_, url):
        message = ask(url, response_format="srt").json()["error"]["message"]
    assert "json, text, verbose_json" in message


@pytest.mark.parametrize("data", [{"file": "words"}, {"model": "m"}])
def test_a_form_without_a_recording_is_refused(data: dict[str, str]) -> None:
    with engine_and_front() as (engine, url):
        assert httpx.post(url + TRANSCRIBE, data=data).status_code == 400
    assert engine.seen == []


def test_only_the_recording_may_be_a_file() -> None:
    with engine_and_front() as (engine, url):
        answer = httpx.post(url + TRANSCRIBE, files={"prompt": ("a.txt", b"a"), "file": ("a.wav", wav())})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "prompt")
    assert engine.seen == []


@pytest.mark.parametrize(
    ("recording", "status"),
    [
        (b"no sound at all", 415),
        (wav(subtype="FLOAT", value=math.nan), 422),
        (wav(subtype="FLOAT", value=math.inf), 422),
        (wav(0.0), 422),
        (wav(2.1), 400),
    ],
    ids=["not audio", "nan", "infinite", "empty", "too long"],
)
def test_unusable_sound_never_reaches_the_engine(recording: bytes, status: int) -> None:
    with engine_and_front(max_recording_seconds=2) as (engine, url):
        answer = ask(url, recording=recording)
    assert answer.status_code == status, answer.text
    assert engine.seen == []
    if status == 400:
        assert "2 s" in answer.json()["error"]["message"]


# what comes of vLLM's answer


def test_text_is_the_text_alone() -> None:
    with engine_and_front() as (engine, url):
        answer = ask(url, response_format="text")
    assert (answer.text, answer.headers["content-type"]) == ("Good day <b>", "text/plain; charset=utf-8")
    assert form_of(engine)[0]["response_format"] == ["json"]


@pytest.mark.parametrize(
    ("path", "fields", "task", "language"),
    [
        (TRANSCRIBE, {}, "transcribe", "und"),
        (TRANSCRIBE, {"language": "ja"}, "transcribe", "ja"),
        (TRANSLATE, {"language": "ja"}, "translate", "en"),
        (TRANSLATE, {"to_language": "zh"}, "translate", "zh"),
    ],
)
def test_verbose_json_has_what_is_known_and_invents_no_times(
    path: str, fields: dict[str, str], task: str, language: str
) -> None:
    with engine_and_front() as (_, url):
        answer = ask(url, path, wav(1.5, 8000), response_format="verbose_json", **fields)
    assert answer.json() == {"task": task, "language": language, "duration": 1.5, **REPLY}


@pytest.mark.parametrize("wanted", ["json", "text", "verbose_json"])
def test_vllms_refusal_comes_through_whatever_the_format(wanted: str) -> None:
    refusal = {"error": {"message": "no such model", "type": "NotFoundError", "code": 404}}
    with engine_and_front(JSONResponse(refusal, 404)) as (_, url):
        answer = ask(url, model="another", response_format=wanted)
    assert (answer.status_code, answer.json()) == (404, refusal)


def test_an_engine_without_this_task_is_told_of_in_our_words() -> None:
    with engine_and_front(JSONResponse({"detail": "Not Found"}, 404)) as (_, url):
        answer = ask(url, TRANSLATE)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")


@pytest.mark.parametrize("wanted", ["json", "text"])
def test_hanging_up_closes_the_engines_side_within_a_second(wanted: str) -> None:
    held = RawAnswer([b'{"text": ', 30.0], type="application/json")
    with engine_and_front(held) as (_, url):
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(
                url + TRANSCRIBE, files={"file": ("a.wav", wav())}, data={"response_format": wanted}, timeout=0.5
            )
        assert held.hung_up.wait(1.0)


def test_an_answer_that_breaks_off_is_the_engines_failure() -> None:
    with engine_and_front(RawAnswer([b'{"text": "Good'], end=False, type="application/json")) as (_, url):
        assert ask(url, response_format="text").status_code == 502


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"texts": 1}', b"\xff"])
def test_an_answer_that_is_no_transcription_is_the_engines_failure(body: bytes) -> None:
    with engine_and_front(Response(body, media_type="application/json")) as (_, url):
        assert ask(url, response_format="text").status_code == 502


@pytest.mark.parametrize("wanted", ["json", "text"])
def test_a_stream_comes_through_unchanged(wanted: str) -> None:
    pieces: list[bytes | float] = [event({"choices": [{"delta": {"content": "Good"}}]}), DONE]
    with engine_and_front(RawAnswer(pieces)) as (engine, url):
        answer = ask(url, stream="true", response_format=wanted)
    assert answer.content == b"".join(piece for piece in pieces if isinstance(piece, bytes))
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert form_of(engine)[0]["stream"] == ["true"]


# vLLM behind it


@pytest.fixture(scope="module")
def url(golden_server: VllmServer) -> Iterator[str]:
    with front(ROUTES, golden_server.base_url) as url:
        yield url


SPEECH = (DATA / "llm" / "audio" / "speech.wav").read_bytes()


@pytest.mark.vllm
@pytest.mark.parametrize("path", [TRANSCRIBE, TRANSLATE])
def test_every_format_carries_the_same_text(path: str, url: str) -> None:
    few = {"max_completion_tokens": "24"}
    text = ask(url, path, SPEECH, **few).json()["text"]
    assert text
    assert ask(url, path, SPEECH, response_format="text", **few).text == text
    verbose = ask(url, path, SPEECH, response_format="verbose_json", **few).json()
    assert (verbose["text"], verbose["task"]) == (text, "transcribe" if path == TRANSCRIBE else "translate")
    lines = ask(url, path, SPEECH, stream="true", **few).text.splitlines()
    events = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]
    assert "".join(event["choices"][0]["delta"]["content"] for event in events) == text


@pytest.mark.vllm
def test_vllms_own_refusals_reach_the_client(url: str) -> None:
    assert ask(url, model="another").status_code == 404
    assert ask(url, language="klingon", response_format="text").status_code == 400
    assert "translates to en and zh" in ask(url, TRANSLATE, to_language="ja").json()["error"]["message"]
