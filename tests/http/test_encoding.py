"""Encoding leaves the event loop free, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path

import formats
import numpy as np
import pytest
from decoded_sound import Samples
from speech_server import wait_until

from sidecar.audio import encoding
from sidecar.audio.encode import ENCODERS, PcmEncoder
from sidecar.audio.encoding import Encoding
from sidecar.errors import EncodingFailed


def tone(samples: int) -> Samples:
    return (0.3 * np.sin(0.1 * np.arange(samples))).astype(np.float32)


@pytest.fixture
def thread() -> Iterator[Executor]:
    with ThreadPoolExecutor(max_workers=1) as thread:
        yield thread


async def encoded(name: str, truth: Samples, piece: int, thread: Executor) -> bytes:
    with Encoding(name, thread, whole=True) as at_work:
        file = [await at_work.header()]
        file += [await at_work.feed(truth[start : start + piece]) for start in range(0, truth.size, piece)]
        return b"".join(file) + await at_work.finish()


@pytest.mark.parametrize("name", ENCODERS)
def test_off_the_event_loop_come_the_same_bytes(name: str, thread: Executor) -> None:
    truth, encoder = tone(9600), ENCODERS[name](whole=True)
    file = encoder.header() + encoder.feed(truth) + encoder.finish()
    assert asyncio.run(encoded(name, truth, truth.size, thread)) == file


def encoders_alive(name: str) -> int:
    return sum(type(thing) is ENCODERS[name] for thing in gc.get_objects())


@pytest.fixture
def no_garbage_collection() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_garbage_collection")
@pytest.mark.parametrize(("name", "noise_mb"), [("flac", 150), ("mp3", 10), ("opus", 10), ("aac", 10)])
def test_a_hundred_streams_leave_no_encoder_and_no_memory(name: str, noise_mb: float, thread: Executor) -> None:
    """The half of them that is hung up on would hold 370 MB of FLAC, 42 MB of AAC, 21 MB of MP3."""

    async def listen(to_the_end: bool) -> None:
        with Encoding(name, thread, whole=False) as at_work:
            await at_work.feed(tone(960))
            if to_the_end:
                await at_work.finish()

    async def some(streams: int) -> None:
        for _ in range(streams // 10):
            await asyncio.gather(*(listen(bool(number % 2)) for number in range(10)))

    def resident_mb() -> float:
        wait_until(lambda: encoders_alive(name) == 0, within_s=5)
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6

    asyncio.run(some(20))
    before_mb = resident_mb()
    asyncio.run(some(100))
    assert resident_mb() - before_mb < noise_mb


def test_the_event_loop_goes_on_while_a_chunk_is_encoded(monkeypatch: pytest.MonkeyPatch, thread: Executor) -> None:
    going_on = threading.Event()

    class Waits(PcmEncoder):
        costly = True

        def feed(self, samples: Samples) -> bytes:
            assert going_on.wait(10), "the event loop stands still"
            return super().feed(samples)

    async def listen() -> None:
        asyncio.get_running_loop().call_later(0.01, going_on.set)
        assert await encoded("flac", tone(960), 960, thread)

    monkeypatch.setitem(encoding.ENCODERS, "flac", Waits)
    asyncio.run(listen())


def test_hanging_up_within_a_chunk_lets_it_end_and_frees_the_encoder(
    monkeypatch: pytest.MonkeyPatch, thread: Executor
) -> None:
    begun, go_on = threading.Event(), threading.Event()

    class Waits(ENCODERS["flac"]):  # type: ignore[misc]
        def feed(self, samples: Samples) -> bytes:
            begun.set()
            assert go_on.wait(10)
            assert super().feed(samples)
            return b""

    async def hang_up() -> None:
        listening = asyncio.create_task(encoded("flac", tone(960), 960, thread))
        await asyncio.to_thread(begun.wait, 10)
        listening.cancel()
        await asyncio.wait({listening})
        go_on.set()
        assert listening.cancelled()

    monkeypatch.setitem(encoding.ENCODERS, "flac", Waits)
    asyncio.run(hang_up())
    wait_until(lambda: not any(type(thing) is Waits for thing in gc.get_objects()), within_s=5)


class Broken(PcmEncoder):
    def feed(self, samples: Samples) -> bytes:
        raise RuntimeError("the codec fell off")


@pytest.mark.parametrize("costly", [False, True])
def test_an_encoder_that_fails_says_for_which_format(
    monkeypatch: pytest.MonkeyPatch, thread: Executor, costly: bool
) -> None:
    monkeypatch.setattr(Broken, "costly", costly)
    monkeypatch.setitem(encoding.ENCODERS, "mp3", Broken)
    with pytest.raises(EncodingFailed, match=r"as mp3 .*fell off.* another response_format"):
        asyncio.run(encoded("mp3", tone(960), 960, thread))


def test_the_benchmark_has_a_row_for_each_format() -> None:
    for name in ENCODERS:
        cells = asyncio.run(formats.row(name, tone(24_000), streams=2)).strip("| ").split(" | ")
        assert cells[0] == name
        assert all(float(cell) >= 0 for cell in cells[1:])
