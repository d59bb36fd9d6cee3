"""The whole trip of one request: checked, admitted, asked of the language model, spoken. Read this first.

`SpeechPipeline.open` refuses what can be refused; what it returns is a `Speech` under way, whose sound is read with
`samples()` and which is closed whatever happens.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sidecar.audio.local_files import LocalFiles
from sidecar.engine.audio_items import recording_reader
from sidecar.engine.client import EngineClient, EngineRequest, Sampling
from sidecar.engine.prompts import Prompt, answer_recording, read_aloud, require_room
from sidecar.engine.splitter import Splitter
from sidecar.errors import BadRequest, NotReady, SidecarError
from sidecar.speech import Speech

if TYPE_CHECKING:
    from sidecar.engine.text import TextTokenizer
    from sidecar.metrics import Metrics
    from sidecar.requests import SpeechRequest
    from sidecar.settings import Settings
    from sidecar.streaming.pool import Slot, StatePool
    from sidecar.streaming.scheduler import StreamScheduler
    from sidecar.streaming.stream import Clock
    from sidecar.token2wav.state import OpenedVoice
    from sidecar.voices.library import VoiceLibrary

#: Drawn seeds are short enough to be typed, and exact in every language's numbers.
DRAWN_SEED_BITS = 31


@dataclass(kw_only=True)
class SpeechPipeline:
    """The parts that every request goes through, and the requests that are on their way."""

    settings: Settings
    engine: EngineClient
    max_model_len: int
    text: TextTokenizer
    voices: VoiceLibrary
    scheduler: StreamScheduler
    pool: StatePool
    metrics: Metrics
    clock: Clock = time.monotonic

    def __post_init__(self) -> None:
        self._running: set[Speech] = set()
        self._closing = False
        self._idle = asyncio.Event()
        self._idle.set()
        limits = self.settings.limits
        self._files = LocalFiles(limits.allowed_audio_path, self.settings.on_loopback, limits.max_body_bytes)

    async def open(self, wanted: SpeechRequest, request_id: str) -> Speech:
        """Everything up to the engine's acceptance. Nothing has been sent to the client yet.

        Raises:
            SidecarError: the request is refused, or cannot be served now; nothing of it is left.
        """
        arrived_at = self.clock()
        self._check_texts(wanted)
        voice = await self._voice(wanted.voice)
        slot = self._slot()
        try:
            prompt = await self._prompt(wanted)
            sampling = self._sampling(wanted, prompt)
        except BaseException:
            slot.release()
            raise
        speech = Speech(
            request_id=request_id,
            stream=self.scheduler.open(voice, seed=sampling.seed, live=wanted.streaming),
            splitter=Splitter(self.text.vocabulary, self.text.token_bytes, in_speech=True),
            slot=slot,
            metrics=self.metrics,
            clock=self.clock,
            arrived_at=arrived_at,
            on_close=self._forget,
        )
        self._running.add(speech)
        self._idle.clear()
        await speech.begin(self.engine, EngineRequest(request_id, prompt.messages, sampling))
        return speech

    async def _voice(self, name: str) -> OpenedVoice:
        """The voice, which may first have to be built, for seconds: no slot is held meanwhile.

        A full server says so before it builds anything.
        """
        self._slot().release()
        return await self.voices.get(name)

    def _slot(self) -> Slot:
        """
        Raises:
            NotReady, Full: no request is taken any more, or not now.
        """
        if self._closing:
            raise _shutting_down()
        return self.pool.take()

    async def drain(self, grace_s: float) -> None:
        """Take no more requests; let those that run end, and cut off what still runs after `grace_s`."""
        self._closing = True
        with suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), grace_s)
        for speech in list(self._running):
            speech.cut_off(_shutting_down())

    def _forget(self, speech: Speech) -> None:
        self._running.discard(speech)
        if not self._running:
            self._idle.set()

    def _check_texts(self, wanted: SpeechRequest) -> None:
        for field, text in (("text", wanted.text), ("system_prompt", wanted.system_prompt or "")):
            limit = self.settings.limits.max_text_characters
            if len(text) > limit:
                raise BadRequest(
                    f"{field} has {len(text):,} characters; {limit:,} are allowed: send it in parts", param=field
                )
            self.text.require_plain(text, field)

    async def _prompt(self, wanted: SpeechRequest) -> Prompt:
        prompts, system = self.settings.prompts, wanted.system_prompt
        if wanted.has_recording:
            return await asyncio.to_thread(
                self._prompt_of_recording, wanted, prompts.system_prompt if system is None else system
            )
        return read_aloud(wanted.text.strip(), prompts.tts_system_prompt if system is None else system)

    def _prompt_of_recording(self, wanted: SpeechRequest, system: str) -> Prompt:
        """Reads and decodes, so it takes a thread."""
        data = wanted.audio if wanted.audio is not None else self._files.read(wanted.audio_path or "")
        try:
            recording = recording_reader(self.settings.limits.max_recording_seconds)(data)
        except SidecarError as error:
            error.param = "audio" if wanted.audio is not None else "audio_path"
            raise
        return answer_recording(recording, wanted.text.strip(), system)

    def _sampling(self, wanted: SpeechRequest, prompt: Prompt) -> Sampling:
        ours = self.settings.sampling
        room = require_room(prompt, self.text, self.max_model_len)
        seed = next((seed for seed in (wanted.seed, ours.seed) if seed is not None), None)
        temperature = ours.temperature if wanted.temperature is None else wanted.temperature
        return Sampling(
            temperature=0.0 if ours.greedy else temperature,
            top_p=ours.top_p if wanted.top_p is None else wanted.top_p,
            top_k=ours.top_k if wanted.top_k is None else wanted.top_k,
            min_p=ours.min_p if wanted.min_p is None else wanted.min_p,
            repetition_penalty=(
                ours.repetition_penalty if wanted.repetition_penalty is None else wanted.repetition_penalty
            ),
            max_tokens=min(wanted.max_tokens or ours.max_tokens, room),
            seed=secrets.randbits(DRAWN_SEED_BITS) if seed is None else seed,
        )


def _shutting_down() -> NotReady:
    return NotReady("the server is shutting down")
