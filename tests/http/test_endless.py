"""A reply of ten minutes over a real connection: neither the server's memory nor its work a minute grows."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import endless
import pytest
import requests

from sidecar.timebase import SAMPLE_RATE_HZ, TOKEN_RATE_HZ, tokens_to_samples

MINUTES = 10
BYTES_A_MINUTE = 2 * 60 * SAMPLE_RATE_HZ
#: Ours had 140 to 450 in four runs: the text, and what the allocator cannot use again. Sound that is kept has 2,880 as
#: bytes and 5,760 as samples, and an encoder's cache that is never cut 3,070.
MOST_KB_A_MINUTE = 1500


@dataclass
class Received:
    """The reply's sound so far, and the server then, each time some of it came."""

    total_bytes: int = 0
    minutes: list[float] = field(default_factory=list)
    megabytes: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)

    def cpu_s_of_minute(self, minute: int) -> float:
        """Of the server's process: unlike the clock's, it does not count who else is on the machine."""
        spent = [cpu for at, cpu in zip(self.minutes, self.cpu_s, strict=True) if minute - 1 <= at <= minute]
        return spent[-1] - spent[0]


def cpu_s(pid: int) -> float:
    user, system = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


@contextmanager
def endless_server(checkpoint: Path) -> Iterator[tuple[str, int]]:
    """URL and process id of a server in a process of its own."""
    tests = Path(__file__).parents[1]
    command = [sys.executable, str(tests / "endless_server.py"), str(checkpoint), str(MINUTES)]
    environment = {
        **os.environ,
        **endless.STEADY_ALLOCATOR,
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}", process.pid
        finally:
            process.kill()


@pytest.fixture(scope="module")
def ten_minutes(checkpoint: Path) -> Received:
    """Chunks of 100 tokens make it quicker than those of 25, and hide nothing: 15,000 tokens all the same."""
    wanted = {"text": "Hello", "streaming": True, "response_format": "pcm", "max_tokens": 20_000}
    got = Received()
    with endless_server(checkpoint) as (url, pid):
        with requests.post(f"{url}/generate", json=wanted, stream=True, timeout=60) as answer:
            assert answer.status_code == 200
            for sound in answer.iter_content(chunk_size=None):
                got.total_bytes += len(sound)
                got.minutes.append(got.total_bytes / BYTES_A_MINUTE)
                got.megabytes.append(endless.rss_mb(pid))
                got.cpu_s.append(cpu_s(pid))
    return got


def test_every_token_of_ten_minutes_is_spoken(ten_minutes: Received) -> None:
    assert ten_minutes.total_bytes == 2 * tokens_to_samples(60 * MINUTES * TOKEN_RATE_HZ)


def test_ten_minutes_take_no_more_memory_than_two(ten_minutes: Received) -> None:
    slope = endless.slope_kb_a_minute(ten_minutes.minutes, ten_minutes.megabytes)
    assert slope < MOST_KB_A_MINUTE


def test_the_tenth_minute_costs_no_more_than_the_second(ten_minutes: Received) -> None:
    second, tenth = (ten_minutes.cpu_s_of_minute(minute) for minute in (2, MINUTES))
    assert tenth < 1.3 * second
