"""The real thing, killed: nothing of it is left."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest

pytestmark = pytest.mark.vllm


def test_a_ready_server_said_so_once(server: Any) -> None:
    assert server.log.count("[launcher] ready after") == 1
    assert "waiting: vLLM is" in server.log
    assert "[vllm] " in server.log
    assert "[sidecar] " in server.log


def test_the_engine_s_socket_is_in_a_folder_of_the_user_alone(server: Any) -> None:
    assert server.engine_socket.parent.stat().st_mode & 0o777 == 0o700


def test_killed_with_9_in_the_middle_of_an_answer_it_leaves_nothing(
    launch: Callable[..., Any],
    tmp_path_factory: pytest.TempPathFactory,
    free_port: int,
    what_is_left: Callable[..., list[int]],
) -> None:
    folder = tmp_path_factory.mktemp("run")
    with launch(folder, free_port, "--engine-port", "0", "--temperature", "2.0", "--top_p", "1.0") as server:
        assert list(folder.glob("vox-serve-*"))
        pids = server.processes()
        assert len(pids) >= 4, "the guard, the sidecar, vLLM's server and its engine"
        with httpx.stream("POST", f"{server.url}/generate", json={"text": "Hello!", "streaming": True}) as answer:
            assert answer.status_code == 200
            server.launcher.kill()
            assert what_is_left(pids, 10) == []
    assert [left.name for left in folder.iterdir()] == ["launcher.log"]
