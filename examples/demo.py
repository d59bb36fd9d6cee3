"""What `make demo` runs: starts both processes on the tiny checkpoint, has four answers spoken, stops both.

The checkpoint is made up, so its voice is noise; everything else is the real road.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from say import Heard, Refused, ask

READY_WITHIN_S = 400
STOPPED_WITHIN_S = 15
TEXT = "Hello, this is Step-Audio speaking!"
INSTRUCTION = "Please answer the question in the recording."
QUESTION = Path(__file__).with_name("question.wav")
#: What a demo shows of the launcher's lines; all of them are in the log.
SHOWN = ("[launcher]", "vox-serve:")
READY = "[launcher] ready "


class DemoFailed(Exception):
    """Why there is nothing to hear."""


def a_port(wanted: int) -> int:
    """The wanted port, or a free one where somebody has it."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                print(f"port {wanted} is taken; using another")
                continue
            return int(probe.getsockname()[1])
    raise DemoFailed("no port is free on 127.0.0.1")


@contextmanager
def serving(port: int, log: Path) -> Iterator[str]:
    """The launcher with `--model tiny`, ready; yields its URL and stops it at the end."""
    command = [sys.executable, "-m", "vox_serve.launch", "--model", "tiny", "--port", str(port)]
    print("$ " + " ".join(["python", *command[1:]]), flush=True)
    # a group of its own, so that a Ctrl-C reaches the launcher once, from here
    launcher = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, errors="replace", process_group=0)
    ready = threading.Event()
    reader = threading.Thread(target=show, args=(launcher, log, ready), daemon=True)
    reader.start()
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until_ready(launcher, ready, log)
        yield url
        if launcher.poll() is not None:
            raise DemoFailed(f"the launcher ended early with exit code {launcher.returncode}; see {log}")
    finally:
        stop(launcher)
        reader.join(timeout=5)


def show(launcher: subprocess.Popen[str], log: Path, ready: threading.Event) -> None:
    """Write every line to the log and the launcher's own to the screen; sets `ready` when one says so."""
    assert launcher.stderr is not None, "the launcher is started with a pipe"
    with log.open("w") as file:
        for line in launcher.stderr:
            file.write(line)
            file.flush()
            if line.startswith(SHOWN):
                print(line, end="", flush=True)
            if line.startswith(READY):
                ready.set()


def wait_until_ready(launcher: subprocess.Popen[str], ready: threading.Event, log: Path) -> None:
    deadline_s = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < deadline_s:
        if launcher.poll() is not None:
            raise DemoFailed(f"the launcher ended with exit code {launcher.returncode}; its whole log is {log}")
        if ready.wait(timeout=0.5):
            return
    raise DemoFailed(f"not ready within {READY_WITHIN_S} s; see {log}")


def stop(launcher: subprocess.Popen[str]) -> None:
    if launcher.poll() is not None:
        return
    launcher.send_signal(signal.SIGTERM)
    try:
        launcher.wait(timeout=STOPPED_WITHIN_S)
    except subprocess.TimeoutExpired:
        launcher.kill()  # its guard ends the rest
        raise DemoFailed(f"the launcher was still there {STOPPED_WITHIN_S} s after SIGTERM") from None


def speak(url: str, folder: Path) -> None:
    """One text and one recording, whole and streamed."""
    print(f"\n{'':34}{'audio s':>9}{'TTFA s':>9}{'RTF':>9}")
    for source, text, recording in (("text", TEXT, None), ("recording", INSTRUCTION, QUESTION)):
        for way, stream in (("whole", False), ("streamed", True)):
            path = folder / f"{source}_{way}.wav"
            heard: Heard = ask(url, text, recording=recording, stream=stream)
            if not heard.pcm:
                raise DemoFailed(f"the answer to the {source}, {way}, has no sound")
            heard.write(path)
            print(f"{path!s:34}{heard.audio_s:9.2f}{heard.first_sound_s:9.2f}{heard.rtf:9.2f}", flush=True)
    print()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--folder", type=Path, default=Path("demo"), help="where the wav files go")
    wanted = parser.parse_args()
    wanted.folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(QUESTION, wanted.folder / "question.wav")
    for number in (signal.SIGTERM, signal.SIGHUP):  # a terminal that is closed must not leave the servers behind
        signal.signal(number, signal.default_int_handler)
    try:
        with serving(a_port(wanted.port), wanted.folder / "launcher.log") as url:
            speak(url, wanted.folder)
    except (DemoFailed, Refused, httpx.HTTPError, OSError) as error:
        print(f"The demo failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return 130
    print(f"Done. Listen to {wanted.folder}/*.wav: the voice is noise, because the tiny checkpoint is made up.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
