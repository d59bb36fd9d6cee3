"""What streams of an OpenAI server are timed by: the client's clock, and the engine's own through /metrics.

At 128 streams the server's one HTTP process may not hand tokens on as fast as the engine makes them, so both are kept.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx


class Failed(Exception):
    """The server answered with an error, or the streams were too short to be timed."""


@dataclass(frozen=True)
class Decode:
    """Milliseconds between two tokens of a stream, while all of them run."""

    engine_ms: float  # mean, by the engine's clock
    client_ms: float  # median over the streams, by ours
    prompt_tokens: int


@dataclass(frozen=True)
class Prefill:
    engine_ms: float  # from scheduled to the first token, mean, by the engine's clock
    client_ms: float  # from sent to the first token, median, by ours


async def time_decode(url: str, body: dict[str, Any], streams: int) -> Decode:
    """Run the same greedy request that many times at once.

    Only the time in which every stream is past its prefill and none has ended counts.

    Raises:
        Failed: there was no such time.
        ExceptionGroup: of Failed; the server answered streams with errors.
    """
    payload = json.dumps(body | {"stream": True, "return_token_ids": True}).encode()
    watches = [_Watch() for _ in range(streams)]
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=httpx.Limits()) as client:
        async with asyncio.TaskGroup() as group:
            for watch in watches:
                group.create_task(watch.follow(client, payload))
            for watch in watches:
                await watch.begun.wait()
            before = await _engine_total(client, "vllm:inter_token_latency_seconds")
            ended = [asyncio.create_task(watch.ended.wait()) for watch in watches]
            await asyncio.wait(ended, return_when=asyncio.FIRST_COMPLETED)
            after = await _engine_total(client, "vllm:inter_token_latency_seconds")
    first, last = max(w.arrivals[0][0] for w in watches), min(w.arrivals[-1][0] for w in watches)
    return Decode(
        engine_ms=_mean_ms(before, after),
        client_ms=statistics.median(token_ms(w.arrivals, first, last) for w in watches),
        prompt_tokens=watches[0].prompt_tokens,
    )


async def time_prefill(url: str, bodies: Sequence[dict[str, Any]]) -> Prefill:
    """Run requests one after another for one token each."""
    times: list[float] = []
    async with httpx.AsyncClient(base_url=url, timeout=600) as client:
        before = await _engine_total(client, "vllm:request_prefill_time_seconds")
        for body in bodies:
            watch = _Watch()
            payload = json.dumps(body | {"stream": True, "return_token_ids": True, "max_tokens": 1}).encode()
            sent = time.perf_counter()
            await watch.follow(client, payload)
            times.append(1e3 * (watch.arrivals[0][0] - sent))
        after = await _engine_total(client, "vllm:request_prefill_time_seconds")
    return Prefill(engine_ms=_mean_ms(before, after), client_ms=statistics.median(times))


def token_ms(arrivals: Sequence[tuple[float, int]], first: float, last: float) -> float:
    """Milliseconds a token of one stream, between the first and the last arrival inside the given times (s).

    Args:
        arrivals: when something came, and how many tokens had come with it.
    """
    inside = [(at, tokens) for at, tokens in arrivals if first <= at <= last]
    if len(inside) < 2:
        raise Failed("the streams did not run side by side for long enough; ask for more tokens")
    (begun, had), (ended, has) = inside[0], inside[-1]
    return 1e3 * (ended - begun) / (has - had)


class _Watch:
    """One stream: when tokens came, and events for its first token and its end."""

    def __init__(self) -> None:
        self.arrivals: list[tuple[float, int]] = []
        self.prompt_tokens = 0
        self.begun, self.ended = asyncio.Event(), asyncio.Event()

    async def follow(self, client: httpx.AsyncClient, payload: bytes) -> None:
        tokens = 0
        headers = {"Content-Type": "application/json"}
        async with client.stream("POST", "/v1/chat/completions", content=payload, headers=headers) as response:
            if response.status_code != 200:
                raise Failed(f"the server answered {response.status_code}: {(await response.aread())[:500]!r}")
            async for line in response.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                chunk = json.loads(line.removeprefix("data: "))
                if "error" in chunk:
                    raise Failed(f"the server ended a stream: {chunk['error']}")
                self.prompt_tokens = len(chunk.get("prompt_token_ids") or ()) or self.prompt_tokens
                if came := sum(len(choice.get("token_ids") or ()) for choice in chunk["choices"]):
                    tokens += came
                    self.arrivals.append((time.perf_counter(), tokens))
                    self.begun.set()
        if not self.arrivals:
            raise Failed("a stream ended without a token")
        self.ended.set()


async def _engine_total(client: httpx.AsyncClient, histogram: str) -> tuple[float, float]:
    """Sum and count of a histogram so far."""
    lines = (await client.get("/metrics")).text.splitlines()
    total, count = (
        sum(float(line.split()[-1]) for line in lines if line.startswith(f"{histogram}_{part}"))
        for part in ("sum", "count")
    )
    return total, count


def _mean_ms(before: tuple[float, float], after: tuple[float, float]) -> float:
    if after[1] == before[1]:
        raise Failed("the engine measured nothing in that time; ask for more tokens")
    return 1e3 * (after[0] - before[0]) / (after[1] - before[1])
