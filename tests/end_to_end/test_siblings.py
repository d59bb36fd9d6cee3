"""The launcher on a model that thinks and on a base model: the same endpoints, each in its own chat format."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import httpx
import pytest

pytestmark = pytest.mark.vllm

HI = {"role": "user", "content": "Hi"}
TOOL = {"type": "function", "function": {"name": "look", "parameters": {}}}


@pytest.fixture
def tiny_as(
    launch: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory, free_port: int
) -> Callable[[str], AbstractContextManager[httpx.Client]]:
    """A client of a server with the tiny model in a chat format. One at a time: each needs the whole machine."""

    @contextmanager
    def start(chat_format: str) -> Iterator[httpx.Client]:
        with launch(tmp_path_factory.mktemp("run"), free_port, "--chat-format", chat_format) as server:
            with httpx.Client(base_url=server.url, timeout=180) as client:
                yield client

    return start


def chat(client: httpx.Client, *messages: dict[str, Any], **fields: Any) -> dict[str, Any]:
    body = {"model": "tiny", "messages": list(messages), "temperature": 0, **fields}
    answer = client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    reply: dict[str, Any] = answer.json()
    return reply


def assert_reads_aloud(client: httpx.Client) -> None:
    answer = client.post("/generate", json={"text": "Hello!"})
    assert answer.status_code == 200, answer.text
    assert len(answer.content) > 24000


def test_a_model_that_thinks_does_so_before_it_writes_and_before_it_speaks(
    tiny_as: Callable[[str], AbstractContextManager[httpx.Client]],
) -> None:
    with tiny_as("think") as client:
        message = chat(client, HI)["choices"][0]["message"]
        assert message["reasoning"].startswith(("I can", "I could"))
        assert message["content"].startswith(("I am", "This is"))
        opened = {"role": "assistant", "content": f"\n<think>\n{message['reasoning']}</think>\n\n<tts_start>"}
        continued = {"add_generation_prompt": False, "continue_final_message": True}
        spoken = chat(client, HI, opened, **continued)["choices"][0]["message"]
        assert "test model" in spoken["tts_content"]["tts_text"]
        assert spoken["tts_content"]["tts_audio"].startswith("<audio_")
        assert_reads_aloud(client)


def test_a_base_model_is_given_the_words_alone_and_reads_aloud(
    tiny_as: Callable[[str], AbstractContextManager[httpx.Client]],
) -> None:
    with tiny_as("base") as client:
        assert chat(client, {"role": "user", "content": "A"}, max_tokens=1)["usage"]["prompt_tokens"] == 1
        body = {"model": "tiny", "messages": [HI], "tools": [TOOL]}
        refused = client.post("/v1/chat/completions", json=body)
        assert (refused.status_code, "calls no tools" in refused.text) == (400, True), refused.text
        assert_reads_aloud(client)
