"""Spoken turns and recordings in plain vLLM: exact ids, whatever the caches know, and never at others' cost."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
import soundfile
from golden_folders import DATA
from requests_with_audio import GREEDY, audio_item, float_wav
from vllm_server import VllmServer

from sidecar.engine.interleave import interleave
from sidecar.engine.text import TextTokenizer
from step_audio_vllm import features
from step_audio_vllm.spoken_turn import samples_of

pytestmark = pytest.mark.vllm

CHECKPOINT = DATA / "llm" / "checkpoint"
TEXT = TextTokenizer.from_folder(CHECKPOINT)
WORDS = TEXT.vocabulary
#: Characters of several tokens each, and more codes than text.
FIRST = interleave(TEXT.encode("今天天气很好"), list(range(0, 6561, 163)), WORDS)
#: A turn that was cut off inside a character, as the model's own ids come: no text tokenizes to it.
SECOND = [
    WORDS.tts_start,
    TEXT.encode("海")[0],
    *range(WORDS.first_speech_id, WORDS.first_speech_id + 4),
    WORDS.tts_end,
]


def recording(name: str) -> bytes:
    return (DATA / "llm" / "audio" / name).read_bytes()


def spoken(token_ids: list[int]) -> dict[str, Any]:
    return audio_item(float_wav(samples_of(token_ids)))


def said(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def blocks(name: str) -> list[int]:
    samples = soundfile.info(DATA / "llm" / "audio" / name).frames
    ids: list[int] = []
    for chunk in features.chunk_lengths(samples):
        count = features.placeholders(features.mel_frames(chunk))
        ids += [WORDS.audio_start, *[WORDS.audio_patch] * count, WORDS.audio_end]
    return ids


def conversation(turns: int) -> list[dict[str, Any]]:
    """Up to three spoken exchanges, recordings on one side and speech on the other, and a last question."""
    messages = [
        {"role": "user", "content": [audio_item(recording("speech.wav"))]},
        {"role": "assistant", "content": [spoken(FIRST)]},
        {"role": "user", "content": [said("And this?"), audio_item(recording("chirp.wav"))]},
        {"role": "assistant", "content": [spoken(SECOND), said("Thank you.")]},
        {"role": "user", "content": [audio_item(recording("blip.wav")), said("Hm?")]},
        {"role": "assistant", "content": [spoken(FIRST)]},
    ]
    return [*messages[: 2 * turns], {"role": "user", "content": "Go on."}]


def expected_ids(turns: int) -> list[int]:
    pieces = [
        [*TEXT.encode("<|BOT|>human\n"), *blocks("speech.wav"), WORDS.end_of_turn],
        [*TEXT.encode("<|BOT|>assistant\n"), *FIRST, WORDS.end_of_turn],
        [*TEXT.encode("<|BOT|>human\nAnd this?"), *blocks("chirp.wav"), WORDS.end_of_turn],
        [*TEXT.encode("<|BOT|>assistant\n"), *SECOND, *TEXT.encode("Thank you."), WORDS.end_of_turn],
        [*TEXT.encode("<|BOT|>human\n"), *blocks("blip.wav"), *TEXT.encode("Hm?"), WORDS.end_of_turn],
        [*TEXT.encode("<|BOT|>assistant\n"), *FIRST, WORDS.end_of_turn],
    ]
    last = TEXT.encode("<|BOT|>human\nGo on.<|EOT|><|BOT|>assistant\n")
    return [*[token for piece in pieces[: 2 * turns] for token in piece], *last]


def ask(server: VllmServer, messages: list[dict[str, Any]], **fields: Any) -> tuple[list[int], list[int]]:
    answer = server.chat({"messages": messages, "max_tokens": 12, **GREEDY, **fields})
    assert answer.status_code == 200, answer.text
    reply = answer.json()
    return reply["prompt_token_ids"], reply["choices"][0]["token_ids"]


def test_a_spoken_turn_reads_as_the_same_ids_given_as_ids(golden_server: VllmServer) -> None:
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": [spoken(SECOND), said("Yes.")]},
        {"role": "user", "content": "Again"},
    ]
    prompt, reply = ask(golden_server, messages)
    before = TEXT.encode("<|BOT|>human\nHi<|EOT|><|BOT|>assistant\n")
    after = TEXT.encode("Yes.<|EOT|><|BOT|>human\nAgain<|EOT|><|BOT|>assistant\n")
    assert prompt == [*before, *SECOND, *after]
    body = {"model": golden_server.model, "prompt": prompt, "max_tokens": 12, **GREEDY}
    raw = httpx.post(f"{golden_server.base_url}/v1/completions", json=body, timeout=60).json()
    assert reply == raw["choices"][0]["token_ids"]


def test_a_growing_conversation_is_exact_whatever_the_caches_know(golden_server: VllmServer) -> None:
    first_time = [ask(golden_server, conversation(turns)) for turns in range(4)]
    assert [prompt for prompt, _ in first_time] == [expected_ids(turns) for turns in range(4)]
    again = [ask(golden_server, conversation(turns)) for turns in reversed(range(4))]
    assert again == first_time[::-1]
    # a new item among known ones, of each kind
    messages = conversation(3)
    messages[1] = {"role": "assistant", "content": [spoken([*SECOND, *SECOND])]}
    messages[4] = {"role": "user", "content": [audio_item(recording("speech.wav")), said("Hm?")]}
    prompt, _ = ask(golden_server, messages)
    assert prompt.count(WORDS.tts_start) == 2 + 1 + 1
    assert prompt.count(WORDS.audio_patch) == 2 * blocks("speech.wav").count(WORDS.audio_patch) + 17


def test_spoken_turns_and_recordings_of_many_requests_share_their_batches(golden_server: VllmServer) -> None:
    alone = [ask(golden_server, conversation(turns)) for turns in range(4)]
    order = [3, 0, 2, 1, 3, 2, 1, 0]
    # salted, so that each is computed anew
    with ThreadPoolExecutor(len(order)) as pool:
        together = list(
            pool.map(lambda i: ask(golden_server, conversation(order[i]), cache_salt=f"salt {i}"), range(len(order)))
        )
    assert together == [alone[turns] for turns in order]


FORBIDDEN = {
    "a placeholder": WORDS.audio_patch,
    "a recording's marker": WORDS.audio_start,
    "the beginning of a turn": WORDS.begin_of_turn,
    "the end of a turn": WORDS.end_of_turn,
    "a row without a token": 7400,
    "an id beyond the vocabulary": 2**24 - 1,
}


@pytest.mark.parametrize("token_id", FORBIDDEN.values(), ids=FORBIDDEN)
def test_ids_that_are_no_speech_are_refused_for_that_request_alone(token_id: int, golden_server: VllmServer) -> None:
    expected = ask(golden_server, conversation(2))
    hostile = {"messages": [{"role": "assistant", "content": [spoken([*FIRST, token_id])]}], **GREEDY, "max_tokens": 2}
    with ThreadPoolExecutor(2) as pool:
        beside = pool.submit(ask, golden_server, conversation(2), cache_salt=str(token_id))
        refused = golden_server.chat(hostile)
        assert beside.result() == expected
    assert refused.status_code == 400, refused.text
    assert str(token_id) in refused.json()["error"]["message"]
    assert ask(golden_server, conversation(2)) == expected


def test_a_damaged_spoken_turn_is_a_request_error(golden_server: VllmServer) -> None:
    cut = audio_item(float_wav(samples_of(FIRST)[:-1]))
    refused = golden_server.chat({"messages": [{"role": "assistant", "content": [cut]}]})
    assert refused.status_code == 400, refused.text
    assert "damaged" in refused.json()["error"]["message"]


def test_a_spoken_turn_longer_than_the_context_is_a_request_error(golden_server: VllmServer) -> None:
    refused = golden_server.chat({"messages": [{"role": "assistant", "content": [spoken(FIRST * 100)]}]})
    assert refused.status_code == 400, refused.text
    assert "leave early turns out" in refused.json()["error"]["message"]


def test_the_same_numbers_as_16_bit_sound_are_heard_and_not_read(golden_server: VllmServer) -> None:
    file = io.BytesIO()
    soundfile.write(file, samples_of(FIRST), 16000, format="WAV", subtype="PCM_16")
    prompt, _ = ask(golden_server, [{"role": "user", "content": [audio_item(file.getvalue())]}])
    assert WORDS.tts_start not in prompt and WORDS.audio_start in prompt
