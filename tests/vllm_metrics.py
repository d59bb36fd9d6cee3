"""What vLLM says it is working on."""

from __future__ import annotations

import time

import httpx
from vllm_server import VllmServer


def running(server: VllmServer) -> float:
    lines = httpx.get(f"{server.base_url}/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("vllm:num_requests_running{"))


def until_running(server: VllmServer, count: int, *, within_s: float) -> bool:
    """Whether that many requests run before the time is over."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if running(server) == count:
            return True
        time.sleep(0.05)
    return False
