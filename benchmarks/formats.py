"""What each format of the answers costs and holds back, and how long the event loop waits meanwhile.

    python benchmarks/formats.py --recording SPEECH.wav

The recording is encoded in chunks of 25 speech tokens (1 s), by itself and for `--streams` listeners at once, as fast
as the encoding thread goes; the longest wait is at the beginning, where all their encoders are opened at once. Behind:
what cannot be decoded yet, at most, of what was fed until then.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from decoded_sound import STREAMED_SILENCE, Samples, at_24_khz, by_ffmpeg
from machine import machine

from sidecar.audio.decode import decode_recording
from sidecar.audio.encode import ENCODERS
from sidecar.audio.encoding import Encoding
from sidecar.audio.resample import resample
from sidecar.timebase import SAMPLE_RATE_HZ, samples_to_seconds, tokens_to_samples

CHUNK_SAMPLES = tokens_to_samples(25)
HEARTBEAT_S = 0.001


def chunks(sound: Samples) -> Iterator[Samples]:
    for start in range(0, sound.size, CHUNK_SAMPLES):
        yield sound[start : start + CHUNK_SAMPLES]


def behind_ms(name: str, sound: Samples) -> float:
    encoder, fed, most = ENCODERS[name](whole=False), 0, 0
    data = encoder.header()
    for chunk in chunks(sound):
        data, fed = data + encoder.feed(chunk), fed + chunk.size
        heard = at_24_khz(by_ffmpeg(data, name), name).size - STREAMED_SILENCE.get(name, 0)
        most = max(most, fed - heard)
    encoder.close()
    return 1000 * samples_to_seconds(most)


async def listen(name: str, sound: Samples, thread: ThreadPoolExecutor) -> int:
    """Bytes of the whole."""
    with Encoding(name, thread, whole=False) as encoding:
        size = len(await encoding.header())
        for chunk in chunks(sound):
            size += len(await encoding.feed(chunk))
            await asyncio.sleep(0)  # as sending does
        return size + len(await encoding.finish())


async def beat(late_s: list[float]) -> None:
    while True:
        slept_at = time.perf_counter()
        await asyncio.sleep(HEARTBEAT_S)
        late_s.append(time.perf_counter() - slept_at - HEARTBEAT_S)


async def row(name: str, sound: Samples, streams: int) -> str:
    seconds = samples_to_seconds(sound.size)
    with ThreadPoolExecutor(max_workers=1) as thread:
        began_s = time.process_time()
        size = await listen(name, sound, thread)
        cpu_ms = 1000 * (time.process_time() - began_s) / seconds
        late_s: list[float] = []
        beating = asyncio.create_task(beat(late_s))
        await asyncio.gather(*(listen(name, sound, thread) for _ in range(streams)), asyncio.sleep(2 * HEARTBEAT_S))
        beating.cancel()
    behind, usual, longest = behind_ms(name, sound), 1000 * np.quantile(late_s, 0.99), 1000 * max(late_s)
    return f"| {name} | {size / seconds / 1000:.1f} | {behind:.1f} | {cpu_ms:.2f} | {usual:.1f} | {longest:.1f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recording", type=Path, required=True)
    parser.add_argument("--streams", type=int, default=16)
    options = parser.parse_args()
    recording = decode_recording(options.recording.read_bytes())
    sound = resample(recording.samples[0], recording.sample_rate_hz, SAMPLE_RATE_HZ)
    sound = sound[: sound.size - sound.size % tokens_to_samples(1)]  # a reply is whole speech tokens
    print(machine())
    print("\n| format | kB a second | behind, ms | CPU, ms a second | loop late, p99, ms | longest, ms |")
    print("|---|---|---|---|---|---|")
    for name in ENCODERS:
        print(asyncio.run(row(name, sound, options.streams)))


if __name__ == "__main__":
    main()
