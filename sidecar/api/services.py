"""What the routes work with, and what of it is still missing while the server loads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from sidecar.engine.spoken_turns import SpokenTurns
from sidecar.errors import NotReady
from sidecar.settings import ENGINE_PART

if TYPE_CHECKING:
    import httpx

    from sidecar.engine.client import EngineClient
    from sidecar.engine.text import TextTokenizer
    from sidecar.metrics import Metrics
    from sidecar.pipeline import SpeechPipeline
    from sidecar.settings import Settings
    from sidecar.voices.library import VoiceLibrary

Part = TypeVar("Part")

#: In the order in which they are found, each in the words that /ready says.
PARTS = {
    "tokenizer": "the tokenizer is being loaded",
    "token2wav": "token2wav is being loaded",
    "voice": "the default voice is being opened",
    "steps": "steps are being captured (for the first time here, their kernels are compiled too, for some minutes)",
    ENGINE_PART: "the language model is not ready yet",
    "warm-up": "a first sentence is being spoken",
}


class Services:
    """Handed to the routes as `app.state.services`. Parts arrive one by one; asking for one too early is NotReady."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self.settings = settings
        self.metrics = metrics
        self.missing = dict(PARTS)
        self.spoken_turns = SpokenTurns()
        # one: with a thread for each reply the event loop would have to win the interpreter back from all of them
        self.encoding_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="encode")
        self._engine: EngineClient | None = None
        self._engine_http: httpx.AsyncClient | None = None
        self._text: TextTokenizer | None = None
        self._voices: VoiceLibrary | None = None
        self._pipeline: SpeechPipeline | None = None

    def not_ready(self) -> NotReady:
        return NotReady("; ".join(self.missing.values()))

    def found(self, part: str) -> None:
        self.missing.pop(part, None)

    async def require_ready(self) -> None:
        """
        Raises:
            NotReady: something is still missing, or the engine, which may go at any time, does not answer.
        """
        if self.missing:
            raise self.not_ready()
        if not await self.engine.is_ready():
            raise NotReady("the language model does not answer")

    async def drain(self, grace_s: float) -> None:
        """Take no more requests for speech, give those that run their time to end, and let nobody wait for a voice."""
        pipeline = self._pipeline
        if pipeline is not None:
            await pipeline.drain(grace_s)
        if self._voices is not None:
            self._voices.stop_waiting()

    @property
    def engine(self) -> EngineClient:
        return self._there(self._engine)

    @engine.setter
    def engine(self, engine: EngineClient) -> None:
        self._engine = engine

    @property
    def engine_http(self) -> httpx.AsyncClient:
        return self._there(self._engine_http)

    @engine_http.setter
    def engine_http(self, engine_http: httpx.AsyncClient) -> None:
        self._engine_http = engine_http

    @property
    def text(self) -> TextTokenizer:
        return self._there(self._text)

    @text.setter
    def text(self, text: TextTokenizer) -> None:
        self._text = text

    @property
    def voices(self) -> VoiceLibrary:
        return self._there(self._voices)

    @voices.setter
    def voices(self, voices: VoiceLibrary) -> None:
        self._voices = voices

    @property
    def pipeline(self) -> SpeechPipeline:
        return self._there(self._pipeline)

    @pipeline.setter
    def pipeline(self, pipeline: SpeechPipeline) -> None:
        self._pipeline = pipeline

    def _there(self, part: Part | None) -> Part:
        if part is None:
            raise self.not_ready()
        return part
