"""`python endless_server.py CHECKPOINT MINUTES`: a server whose every reply lasts so long, until its input ends.

A process of its own, so that a test can read its memory. It prints its port once it is ready.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator
from pathlib import Path

from speech_parts import spoken_reply
from speech_server import speech_server

from sidecar.engine.client import Accepted, EngineRequest, TokenDelta
from sidecar.engine.scripted import ScriptedEngine
from sidecar.engine.text import TextTokenizer
from sidecar.settings import Settings, StreamSettings
from sidecar.timebase import TOKEN_RATE_HZ


class LongReplies(ScriptedEngine):
    """As a language model does, it stops at `max_tokens`: the sentence that warms the server up is short."""

    async def generate(self, request: EngineRequest) -> AsyncGenerator[Accepted | TokenDelta, None]:
        left = request.sampling.max_tokens
        async for item in super().generate(request):
            if isinstance(item, Accepted):
                yield item
                continue
            yield TokenDelta(item.token_ids[:left], item.finish_reason)
            left -= min(left, len(item.token_ids))
            if left == 0:
                return


def main(checkpoint: Path, minutes: int) -> None:
    speech_tokens = 60 * minutes * TOKEN_RATE_HZ
    text = TextTokenizer.from_folder(checkpoint)
    # words for as long as there is speech: at most one token of text for every four
    ids = spoken_reply(text, "Good morning. " * (speech_tokens // 60), speech_tokens)
    # a little faster than they are spoken, as a language model is
    engine = LongReplies(ids, delta_tokens=50, delta_s=0.03, max_model_len=2 * len(ids))
    settings = Settings(model=checkpoint, stream=StreamSettings(chunk_tokens=200))
    with speech_server(settings, engine) as server:
        print(server.port, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
