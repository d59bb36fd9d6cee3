"""A request is refused for the field that is wrong, in words that name it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sidecar.errors import BadRequest
from sidecar.requests import SpeechRequest


def from_json(**fields: Any) -> SpeechRequest:
    return SpeechRequest.from_json(json.dumps(fields).encode())


def test_only_a_text_is_needed() -> None:
    wanted = from_json(text="Hello")
    assert (wanted.text, wanted.streaming, wanted.response_format, wanted.voice) == ("Hello", False, "wav", "default")
    assert wanted.seed is None


def test_json_and_form_mean_the_same() -> None:
    in_json = from_json(
        text="Hello", streaming=True, temperature=0.5, top_k=7, seed=2**63 - 1, response_format="pcm", min_p=0
    )
    in_form = SpeechRequest.from_form({
        "text": "Hello", "streaming": "on", "temperature": "0.5", "top_k": "7", "seed": str(2**63 - 1),
        "response_format": "pcm", "min_p": "0",
    }.items())  # fmt: skip
    assert in_json == in_form


@pytest.mark.parametrize(
    ("word", "meaning"),
    [
        ("true", True),
        ("1", True),
        ("YES", True),
        ("on", True),
        ("false", False),
        ("0", False),
        ("no", False),
        ("Off", False),
    ],
)
def test_booleans_in_forms_have_eight_words(word: str, meaning: bool) -> None:
    assert SpeechRequest.from_form([("text", "a"), ("streaming", word)]).streaming is meaning


@pytest.mark.parametrize("word", ["", "2", "ja", "truee", "None"])
def test_other_words_for_booleans_are_refused(word: str) -> None:
    with pytest.raises(BadRequest, match="streaming must be true, 1, yes, on, false, 0, no, off") as refused:
        SpeechRequest.from_form([("text", "a"), ("streaming", word)])
    assert refused.value.param == "streaming"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("text", 5), ("text", ["a"]), ("text", True), ("text", "   "), ("text", "half a \ud83d"),
        ("streaming", "true"), ("streaming", 1),
        ("temperature", True), ("temperature", "0.5"), ("temperature", -0.1), ("temperature", 2.1),
        ("temperature", 10**400), ("top_p", 0), ("top_p", 1.1), ("top_k", -2), ("top_k", 1.0), ("min_p", 1.5),
        ("repetition_penalty", 0), ("max_tokens", 0), ("max_tokens", 10**30), ("max_tokens", True),
        ("seed", -1), ("seed", 2**63), ("seed", 1.5), ("seed", "1"),
        ("response_format", "ogg"), ("response_format", 3), ("system_prompt", {}),
        ("voice", ""), ("voice", 3), ("voice", "../anna"), ("voice", "anna.wav"), ("voice", "ann a"),
        ("voice", "anna\n"), ("voice", "änna"), ("voice", "a" * 65), ("voice", "a" * 10_000), ("voice", "\0"),
        ("voice", ["anna"]), ("audio", "UklGRg=="), ("audio_path", 7),
    ],
)  # fmt: skip
def test_a_wrong_field_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(BadRequest, match=field) as refused:
        from_json(**{"text": "Hello", field: value})
    assert refused.value.param == field
    assert len(refused.value.message) < 300


@pytest.mark.parametrize(
    ("field", "word"),
    [
        ("temperature", "nan"), ("temperature", "inf"), ("temperature", "1e999"), ("temperature", "0x1"),
        ("temperature", "1_0"), ("temperature", ""), ("seed", "1.0"), ("seed", "9" * 5000), ("seed", "٣"),
        ("top_k", ""),
    ],
)  # fmt: skip
def test_words_that_are_no_numbers_are_refused_in_forms(field: str, word: str) -> None:
    with pytest.raises(BadRequest, match=field):
        SpeechRequest.from_form([("text", "a"), (field, word)])


@pytest.mark.parametrize(
    "body",
    [
        b"", b"text", b"[]", b'"text"', b"null", b'{"text": "a", "temperature": NaN}', b'{"text": "\xff"}',
        b"[" * 100_000, b'{"text": "a", "seed": ' + b"9" * 5000 + b"}",
    ],
)  # fmt: skip
def test_a_body_that_is_no_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(BadRequest):
        SpeechRequest.from_json(body)


def test_null_is_as_if_not_given() -> None:
    assert from_json(text="Hello", seed=None, system_prompt=None, audio=None) == from_json(text="Hello")


def test_text_may_be_missing_beside_a_recording() -> None:
    assert SpeechRequest.from_form([], [("audio", b"RIFF")]).audio == b"RIFF"
    assert from_json(audio_path="a.wav").text == ""


def test_two_recordings_are_refused() -> None:
    with pytest.raises(BadRequest, match="audio and audio_path"):
        SpeechRequest.from_form([("audio_path", "a.wav")], [("audio", b"RIFF")])
    with pytest.raises(BadRequest, match="twice"):
        SpeechRequest.from_form([], [("audio", b"RIFF"), ("audio", b"RIFF")])


def test_a_field_given_twice_is_refused() -> None:
    with pytest.raises(BadRequest, match="text was given twice"):
        SpeechRequest.from_form([("text", "a"), ("text", "b")])


def test_a_text_as_a_file_and_a_file_as_a_text_are_refused() -> None:
    with pytest.raises(BadRequest, match="send it as text"):
        SpeechRequest.from_form([], [("text", b"Hello")])
    with pytest.raises(BadRequest, match="audio must be a file"):
        SpeechRequest.from_form([("text", "a"), ("audio", "input.wav")])


def test_unknown_fields_are_ignored_and_named() -> None:
    assert from_json(text="a", model="x", speed=2).ignored_fields == ("model", "speed")
    form = SpeechRequest.from_form([("text", "a"), ("model", "x"), ("model", "y")], [("file", b"")])
    assert form.ignored_fields == ("model", "file")


@pytest.mark.parametrize("name", ["a", "-", "_", "0", "Anna-2_b", "a" * 64, "default"])
def test_a_voice_is_a_name_of_letters_digits_dashes_and_underscores(name: str) -> None:
    assert from_json(text="Hello", voice=name).voice == name
    assert SpeechRequest.from_form([("text", "Hello"), ("voice", name)]).voice == name


def test_the_formats_are_named() -> None:
    with pytest.raises(BadRequest, match="wav or pcm or flac or mp3 or opus or aac"):
        from_json(text="a", response_format="vorbis")
