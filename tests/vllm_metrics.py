"""What vLLM says it is working on."""

from __future__ import annotations

import time

import httpx
from vllm_server import VllmServer


def metric(server: VllmServer, name: str) -> float:
    """The sum of a metric's samples over its labels; 0 where there is none yet."""
    lines = httpx.get(f"{server.base_url}/metrics", timeout=30).text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith((f"{name}{{", f"{name} ")))


def running(server: VllmServer) -> float:
    return metric(server, "vllm:num_requests_running")


def until_running(server: VllmServer, count: int, *, within_s: float) -> bool:
    """Whether that many requests run before the time is over."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if running(server) == count:
            return True
        time.sleep(0.05)
    return False
