"""create_app(): the only file that wires parts. What is not handed in is made in the lifespan."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace

import torch
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware

from sidecar.api import chat, generate, openai, replies, status, transcriptions
from sidecar.api import voices as voice_routes
from sidecar.api.middleware import BodyLimit, RequestId
from sidecar.api.services import Services
from sidecar.engine.client import EngineClient
from sidecar.engine.http import HttpEngine, open_engine_http
from sidecar.engine.text import TextTokenizer
from sidecar.engine.untrained import sampling_of_untrained
from sidecar.errors import SidecarError
from sidecar.metrics import Metrics
from sidecar.pipeline import SpeechPipeline
from sidecar.requests import SpeechRequest
from sidecar.settings import Settings
from sidecar.streaming.chunking import ChunkPlan
from sidecar.streaming.device import make_steps
from sidecar.streaming.loop_lag import watch_loop_lag
from sidecar.streaming.pool import StatePool
from sidecar.streaming.scheduler import StepTaken, StreamScheduler
from sidecar.token2wav.token2wav import Token2Wav
from sidecar.voices.library import VoiceLibrary

logger = logging.getLogger(__name__)

#: Spoken once through the whole pipeline before the server calls itself ready. Its tokens are bounded: it is there to
#: run every part once, and a sentence of some seconds does.
WARM_UP = SpeechRequest(text="Hello, this is the first sentence.", max_tokens=64, seed=0, streaming=True)
#: So many of it at once on a GPU: vLLM compiles what samples for 8 streams and more when they first come, and who came
#: first to an H100 waited up to 5 s for that.
GPU_WARM_UP_STREAMS = 16
ENGINE_POLL_S = 0.2
#: On a GPU a step of eight chunks takes half as long again as a step of one, and what it takes is taken from the
#: language model beside it. At 64 listeners some 15 chunks come in this time.
GPU_BATCH_WAIT_S = 0.1


def create_app(
    settings: Settings,
    *,
    engine: EngineClient | None = None,
    token2wav: Token2Wav | None = None,
    voices: VoiceLibrary | None = None,
    on_failure: Callable[[], None] = lambda: None,
) -> Starlette:
    """The sidecar as an ASGI application.

    Args:
        engine, token2wav, voices: made from the settings where not given.
        on_failure: called, in any thread, when a part cannot be made or is lost for good: the server is of no use.
    """
    pool = StatePool(settings.slots)
    services = Services(settings, _metrics(pool, lambda: loader.chunks_waiting))
    loader = _Loader(services, pool, token2wav, voices)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with AsyncExitStack() as opened:
            opened.callback(services.encoding_thread.shutdown, wait=False)
            where = settings.engine
            services.engine_http = await opened.enter_async_context(
                open_engine_http(socket=where.engine_socket, url=where.engine_url, key=where.engine_key)
            )
            services.engine = engine or HttpEngine(services.engine_http, sampling_of_untrained(settings.model))
            loading = asyncio.create_task(loader.load(opened, on_failure), name="loading")
            watching = asyncio.create_task(watch_loop_lag(services.metrics.loop_lag_seconds.observe), name="loop lag")
            yield
            for task in (loading, watching):
                task.cancel()
            await asyncio.gather(loading, watching, return_exceptions=True)

    app = Starlette(
        routes=[
            *generate.ROUTES,
            *status.ROUTES,
            *chat.ROUTES,
            *transcriptions.ROUTES,
            *voice_routes.ROUTES,
            *openai.ROUTES,
        ],
        middleware=[Middleware(RequestId), Middleware(BodyLimit, settings.limits.max_body_bytes)],
        exception_handlers={
            SidecarError: replies.on_sidecar_error,
            HTTPException: replies.on_http_exception,
            Exception: replies.on_unexpected_error,
        },
        lifespan=lifespan,
    )
    app.state.services = services
    return app


@dataclass
class _Loader:
    """Finds one part after the other, then speaks a first sentence, while /health answers already."""

    services: Services
    pool: StatePool
    token2wav: Token2Wav | None
    voices: VoiceLibrary | None
    scheduler: StreamScheduler | None = None

    @property
    def chunks_waiting(self) -> int:
        return 0 if self.scheduler is None else self.scheduler.chunks_waiting

    async def load(self, opened: AsyncExitStack, on_failure: Callable[[], None]) -> None:
        try:
            await self._tokenizer()
            token2wav = await self._token2wav()
            voices = await self._voices(token2wav, opened)
            scheduler = await self._scheduler(token2wav, on_failure)
            scheduler.start()
            opened.push_async_callback(scheduler.close)
            pipeline = await self._pipeline(scheduler, voices)
            await self._warm_up(pipeline)
            _leave_out_of_garbage_collection()
            self.services.pipeline = pipeline
            self.services.found("warm-up")
            logger.info("ready to speak")
        except SidecarError as error:
            logger.error("cannot start: %s", error.message)
            on_failure()
        except Exception:
            # without this the server would stand there for ever, neither ready nor dead
            logger.exception("cannot start")
            on_failure()

    async def _tokenizer(self) -> None:
        self.services.text = await asyncio.to_thread(TextTokenizer.from_folder, self.services.settings.model)
        self.services.found("tokenizer")

    async def _token2wav(self) -> Token2Wav:
        if self.token2wav is None:
            settings = self.services.settings
            dtype: torch.dtype = getattr(torch, settings.precision)
            self.token2wav = await asyncio.to_thread(
                Token2Wav.from_folder, settings.model / "token2wav", device=settings.device, dtype=dtype
            )
        self.services.found("token2wav")
        return self.token2wav

    async def _voices(self, token2wav: Token2Wav, opened: AsyncExitStack) -> VoiceLibrary:
        voices = self.voices or self._library(token2wav, opened)
        await voices.default()
        self.services.voices = voices
        self.services.found("voice")
        return voices

    def _library(self, token2wav: Token2Wav, opened: AsyncExitStack) -> VoiceLibrary:
        settings = self.services.settings
        voices = VoiceLibrary(
            token2wav,
            settings.model,
            voice=settings.voice,
            voice_dir=settings.voice_dir,
            memory_mb=settings.voice_memory_mb,
        )
        opened.push_async_callback(voices.close)
        return voices

    async def _scheduler(self, token2wav: Token2Wav, on_failure: Callable[[], None]) -> StreamScheduler:
        settings, metrics = self.services.settings, self.services.metrics
        sizes = settings.stream
        plan = ChunkPlan(first_chunk_tokens=sizes.first_chunk_tokens, chunk_tokens=sizes.chunk_tokens)
        steps = await asyncio.to_thread(make_steps, token2wav, plan, settings)
        self.services.found("steps")

        def count(step: StepTaken) -> None:
            chunk = "first" if step.first else "later"
            metrics.step_seconds.observe(step.seconds, chunk)
            metrics.step_streams.observe(step.streams, chunk)

        wait_s = GPU_BATCH_WAIT_S if settings.on_gpu else 0.0
        self.scheduler = StreamScheduler(steps, plan, batch_wait_s=wait_s, on_step=count, on_broken=on_failure)
        return self.scheduler

    async def _pipeline(self, scheduler: StreamScheduler, voices: VoiceLibrary) -> SpeechPipeline:
        services = self.services
        while not await services.engine.is_ready():  # noqa: ASYNC110  it is another process
            await asyncio.sleep(ENGINE_POLL_S)
        info = await services.engine.model_info()
        services.found("engine")
        return SpeechPipeline(
            settings=services.settings,
            engine=services.engine,
            max_model_len=services.settings.engine.max_model_len or info.max_model_len,
            text=services.text,
            voices=voices,
            scheduler=scheduler,
            pool=self.pool,
            metrics=services.metrics,
        )

    async def _warm_up(self, pipeline: SpeechPipeline) -> None:
        # nobody asked for these sentences, so they are left out of the numbers
        unheard = replace(pipeline, metrics=_metrics(self.pool))

        async def speak() -> None:
            async with await unheard.open(WARM_UP, "warm-up") as speech:
                async for _ in speech.samples():
                    pass

        settings = self.services.settings
        streams = min(GPU_WARM_UP_STREAMS, settings.slots) if settings.on_gpu else 1
        await asyncio.gather(*(speak() for _ in range(streams)))


def _leave_out_of_garbage_collection() -> None:
    """What is there by now stays for good. Looking through all of it, for what listeners leave behind, held the event
    loop up for more than 100 ms at a time."""
    gc.collect()
    gc.freeze()


def _metrics(pool: StatePool, chunks_waiting: Callable[[], int] = lambda: 0) -> Metrics:
    return Metrics(streams_running=lambda: pool.taken, slots=pool.slots, chunks_waiting=chunks_waiting)
