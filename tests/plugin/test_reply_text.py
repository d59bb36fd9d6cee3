"""Decoded text on its way to a user: no speech section and no control name is left, however it arrives."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from step_audio_vllm.reply_text import ReplyText, reply_text

PIECES = ["a", "上海", " ", "<", ">", "<a", "<audio_", "<audio_12>", "<audio_6561>", "<audio_x>", "<audio_12345>",
          "<tts_start>", "<tts_end>", "<tts_pad>", "<|EOT|>", "<|", "</tool_call>", "<audio_patch>"]  # fmt: skip


@pytest.mark.parametrize(
    ("decoded", "text"),
    [
        ("Hello <audio_12><audio_7>world", "Hello world"),
        ("Before<tts_start>said<audio_1> aloud<tts_end>after", "Beforeafter"),
        ("cut off<tts_start>said<audio_1>", "cut off"),
        ("<tts_end>a<tts_pad>b<|EOT|>c<|BOT|>", "abc"),
        ("<tool_call>x</tool_call>", "x"),
        ("2 < 3, <b>bold</b>, <audio_>, <audio_123456>", "2 < 3, <b>bold</b>, <audio_>, <audio_123456>"),
        ("ends with <audi", "ends with <audi"),
        ("", ""),
    ],
)
def test_only_text_outside_speech_is_left(decoded: str, text: str) -> None:
    assert reply_text(decoded) == text


@given(st.lists(st.sampled_from(PIECES)).map("".join), st.data())
def test_text_that_arrives_in_any_portions_is_the_same_text(decoded: str, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(decoded)))))
    bounds = [0, *cuts, len(decoded)]
    reader = ReplyText()
    portions = [decoded[start:end] for start, end in pairwise(bounds)]
    given_out = "".join(reader.process_delta(portion, False) for portion in portions) + reader.process_delta("", True)
    assert given_out == reply_text(decoded)


def test_text_does_not_wait_without_need() -> None:
    reader = ReplyText()
    assert [reader.feed(text) for text in ("2 <", " 3", "<audio", "_12", ">!")] == ["2 ", "< 3", "", "", "!"]
