"""Both start, one line says when, and nothing is left of either however it ends."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from vox_serve.supervisor import make_run_folder

Supervise = Callable[..., Any]
Gone = Callable[..., None]


class AlwaysReady(BaseHTTPRequestHandler):
    """Somebody else's server: 200 to everything."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()


def test_it_says_what_it_waits_for_and_once_when_ready(supervise: Supervise, tmp_path: Path) -> None:
    running = supervise()
    running.wait_for_line("waiting: vLLM is loading")
    running.wait_for_line("a voice is missing")
    assert "ready after" not in running.lines()
    (tmp_path / "go").touch()
    running.wait_for_line("ready after")
    assert running.lines().count("ready after") == 1
    assert "curl http://127.0.0.1:" in running.lines()


def test_another_server_that_took_the_port_is_not_taken_for_the_sidecar(
    supervise: Supervise, tmp_path: Path, free_port: int
) -> None:
    until_go = "import pathlib, sys, time\nwhile not pathlib.Path(sys.argv[1], 'go').exists(): time.sleep(0.05)\n"
    with HTTPServer(("127.0.0.1", free_port), AlwaysReady) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        running = supervise(sidecar=f"{until_go}sys.exit('the port is taken')")
        running.wait_for_line("another server answers at")
        (tmp_path / "go").touch()
        assert running.process.wait(timeout=15) == 1
        other.shutdown()
    assert "sidecar ended with exit code 1: the port is taken" in running.lines()
    assert "ready after" not in running.lines()


def test_on_a_shared_gpu_vllm_starts_once_nothing_else_is_missing(supervise: Supervise, tmp_path: Path) -> None:
    running = supervise(sidecar_first=True)
    running.wait_for_line("waiting: a voice is missing")
    time.sleep(1)
    assert not (tmp_path / "engine").exists()
    (tmp_path / "loaded").touch()
    running.wait_for_line("waiting: vLLM is loading")
    running.wait_for_line("waiting: the engine is missing")
    assert "ready after" not in running.lines()
    (tmp_path / "go").touch()
    running.wait_for_line("ready after")


def test_a_sidecar_that_dies_while_it_loads_leaves_vllm_unstarted(supervise: Supervise, tmp_path: Path) -> None:
    running = supervise(sidecar_first=True, sidecar="import sys; sys.exit('no memory for 512 streams')")
    assert running.process.wait(timeout=15) == 1
    assert "sidecar ended with exit code 1: no memory for 512 streams" in running.lines()
    assert not (tmp_path / "engine").exists()


def test_a_stop_while_the_sidecar_loads_ends_it_alone(supervise: Supervise, gone: Gone, tmp_path: Path) -> None:
    running = supervise(sidecar_first=True)
    running.wait_for_line("waiting: a voice is missing")
    running.process.send_signal(signal.SIGINT)
    assert running.process.wait(timeout=10) == 0
    gone([int((tmp_path / "sidecar").read_text())], within_s=1)
    assert not (tmp_path / "engine").exists()


def test_a_sidecar_that_dies_while_vllm_loads_ends_vllm(supervise: Supervise, gone: Gone, tmp_path: Path) -> None:
    (tmp_path / "loaded").touch()
    running = supervise(sidecar_first=True)
    running.wait_for_line("waiting: vLLM is loading")
    *engine, sidecar = running.child_pids()
    os.kill(sidecar, signal.SIGKILL)
    assert running.process.wait(timeout=10) == 1
    assert "sidecar was ended by SIGKILL" in running.lines()
    gone(engine, within_s=1)


def test_a_stop_while_it_prepares_ends_that_and_starts_nothing(
    supervise: Supervise, gone: Gone, tmp_path: Path
) -> None:
    write = "import os, sys, time; print(os.getpid(), file=sys.stderr, flush=True); time.sleep(120)"
    running = supervise(prepare=[[sys.executable, "-c", write]])
    running.wait_for_line("[prepare] ")
    running.process.send_signal(signal.SIGTERM)
    assert running.process.wait(timeout=10) == 0
    gone([int(running.lines().partition("[prepare] ")[2].split()[0])], within_s=1)
    assert not (tmp_path / "engine").exists()


def test_vllm_s_end_stops_a_sidecar_that_was_there_first(supervise: Supervise, gone: Gone, tmp_path: Path) -> None:
    (tmp_path / "loaded").touch()
    running = supervise(sidecar_first=True, engine="import sys; sys.exit('no memory for keys and values')")
    assert running.process.wait(timeout=15) == 1
    assert "vllm ended with exit code 1: no memory for keys and values" in running.lines()
    gone([int((tmp_path / "sidecar").read_text())], within_s=1)


def test_what_the_plan_has_to_say_comes_first(supervise: Supervise) -> None:
    running = supervise(notes=["token2wav: 16 GB in all"])
    running.wait_for_line("waiting: vLLM is loading")
    assert running.lines().startswith("[launcher] token2wav: 16 GB in all\n")


def test_child_lines_carry_the_child_s_name(supervise: Supervise) -> None:
    supervise().wait_for_line("[vllm] engine is loading")


def test_children_share_the_launcher_s_session_and_so_the_cpu(supervise: Supervise) -> None:
    running = supervise()
    sessions = {os.getsid(pid) for pid in running.child_pids()}
    assert sessions == {os.getsid(running.process.pid)}


def test_children_work_in_the_launcher_s_folder_where_the_paths_of_its_flags_begin(supervise: Supervise) -> None:
    running = supervise()
    folders = {Path(f"/proc/{pid}/cwd").readlink() for pid in running.child_pids()}
    assert folders == {Path(f"/proc/{running.process.pid}/cwd").readlink()}


def test_progress_bars_become_lines(supervise: Supervise) -> None:
    bars = (
        "import sys, time; sys.stderr.write('\\r 10%|#  |\\r 50%|## |\\n\\x1b[A\\x1b[2K'); print('x' * 300_000);"
        "print('last', end='', flush=True); time.sleep(60)"
    )
    running = supervise(engine=bars)
    running.wait_for_line("x" * 300_000)
    assert "[vllm]  10%|#  |\n[vllm]  50%|## |\n[vllm] xxx" in running.lines()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_stop_that_was_asked_for_ends_both_and_exits_0(supervise: Supervise, gone: Gone, number: int) -> None:
    running = supervise()
    pids = running.child_pids()
    running.process.send_signal(number)
    assert running.process.wait(timeout=10) == 0
    gone(pids, within_s=1)
    assert not running.run_folder().exists()


def test_children_that_ignore_sigterm_are_killed_with_their_own_children(supervise: Supervise, gone: Gone) -> None:
    running = supervise(stubborn=True, grace_s=1.0)
    pids = running.child_pids()
    asked_s = time.monotonic()
    running.process.send_signal(signal.SIGTERM)
    running.process.wait(timeout=10)
    gone(pids, within_s=1)
    assert 1.0 <= time.monotonic() - asked_s < 5


def test_a_second_ctrl_c_kills_at_once(supervise: Supervise, gone: Gone) -> None:
    running = supervise(stubborn=True, grace_s=60)
    pids = running.child_pids()
    running.process.send_signal(signal.SIGINT)
    running.wait_for_line("stopping")
    time.sleep(0.5)  # nobody's finger is faster
    running.process.send_signal(signal.SIGINT)
    running.process.wait(timeout=5)
    gone(pids, within_s=1)


def test_two_signals_at_once_are_one_stop(supervise: Supervise, gone: Gone) -> None:
    running = supervise(stubborn=True, grace_s=2.0)
    pids = running.child_pids()
    asked_s = time.monotonic()
    for number in (signal.SIGTERM, signal.SIGINT):  # two of the same could arrive as one
        running.process.send_signal(number)
    running.process.wait(timeout=10)
    assert time.monotonic() - asked_s >= 2.0, "both had their time"
    gone(pids, within_s=1)


def test_under_nohup_a_closed_terminal_ends_nothing(supervise: Supervise, tmp_path: Path) -> None:
    running = supervise(under=["nohup"])
    running.child_pids()
    running.process.send_signal(signal.SIGHUP)
    (tmp_path / "go").touch()
    running.wait_for_line("ready after")
    assert "stopping" not in running.lines()


def test_a_guard_that_was_killed_leaves_nothing_to_a_stop(supervise: Supervise, gone: Gone) -> None:
    running = supervise()
    pids = running.child_pids()
    os.kill(running.guard_pid(), signal.SIGKILL)
    running.process.send_signal(signal.SIGTERM)
    assert running.process.wait(timeout=10) == 0
    gone(pids, within_s=1)
    assert not running.run_folder().exists()


@pytest.mark.parametrize("stubborn", [False, True])
def test_nothing_is_left_of_a_launcher_that_is_killed(supervise: Supervise, gone: Gone, stubborn: bool) -> None:
    running = supervise(stubborn=stubborn, grace_s=1.0)
    pids = running.child_pids()
    running.process.kill()
    gone(pids, within_s=6)
    deadline = time.monotonic() + 3
    while running.run_folder().exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not running.run_folder().exists()


def test_nothing_is_left_of_a_launcher_that_is_killed_while_it_prepares(
    supervise: Supervise, gone: Gone, tmp_path: Path
) -> None:
    write = "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(120)"
    written = tmp_path / "pid"
    running = supervise(prepare=[[sys.executable, "-c", write, str(written)]])
    running.wait_for_line("waiting: it is being prepared")
    deadline = time.monotonic() + 10
    while not (written.exists() and written.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    running.process.kill()
    gone([int(written.read_text())], within_s=6)


def test_a_child_that_dies_is_named_with_its_last_lines_and_the_other_is_stopped(
    supervise: Supervise, gone: Gone
) -> None:
    engine = "import sys; [print('line', n) for n in range(40)]; print('no memory left', flush=True); sys.exit(3)"
    running = supervise(engine=engine)
    assert running.process.wait(timeout=15) == 1
    said = running.lines()
    obituary = said[said.index("vllm ended with exit code 3") :]
    assert "no memory left" in obituary
    assert "line 39" in obituary
    assert "line 20\n" not in obituary
    assert "Traceback" not in said
    sidecar = running.folder / "sidecar"
    if sidecar.exists():
        gone([int(sidecar.read_text())], within_s=1)


def test_the_signal_that_ended_a_child_is_named(supervise: Supervise, tmp_path: Path) -> None:
    running = supervise()
    (tmp_path / "go").touch()
    running.wait_for_line("ready after")
    os.kill(running.child_pids()[0], signal.SIGKILL)
    assert running.process.wait(timeout=10) == 1
    assert "vllm was ended by SIGKILL" in running.lines()


def test_a_grandchild_that_outlives_its_parent_is_ended_too(supervise: Supervise, gone: Gone) -> None:
    running = supervise(grace_s=1.0)
    pids = running.child_pids()
    os.kill(pids[0], signal.SIGKILL)
    assert running.process.wait(timeout=10) == 1
    gone(pids, within_s=1)


def test_preparation_hands_its_folder_to_both(supervise: Supervise, tmp_path: Path) -> None:
    model = tmp_path / "model"
    write = f"import sys; print('half done', file=sys.stderr); print({str(model)!r})"
    engine = "import sys, time; print('model', sys.argv[-1], flush=True); time.sleep(60)"
    running = supervise(prepare=[[sys.executable, "-c", write]], engine=engine)
    running.wait_for_line("[vllm] model")
    assert "[prepare] half done" in running.lines()


def test_a_long_tmpdir_still_leaves_room_for_a_socket_s_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    folder = make_run_folder()
    folder.rmdir()
    assert len(str(folder)) + len("/fb929663-d2d7-4f6b-bd20-e4ff7f6da72c") <= 107


def test_a_failed_preparation_starts_nothing(supervise: Supervise, tmp_path: Path) -> None:
    running = supervise(prepare=[[sys.executable, "-c", "import sys; sys.exit('no such model')"]])
    assert running.process.wait(timeout=10) == 1
    assert "prepare ended with exit code 1" in running.lines()
    assert "no such model" in running.lines()
    assert not (tmp_path / "engine").exists()


def test_a_child_with_one_line_to_say_is_quoted_in_one(supervise: Supervise) -> None:
    running = supervise(prepare=[[sys.executable, "-c", "import sys; sys.exit('no such model; give a folder')"]])
    assert running.process.wait(timeout=10) == 1
    assert "[launcher] prepare ended with exit code 1: no such model; give a folder\n" in running.lines()
