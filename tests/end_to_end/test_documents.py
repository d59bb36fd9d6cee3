"""The requests and flags that README and docs show work as shown, against the real server."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import wave
from pathlib import Path
from typing import Any

import pytest

from sidecar.audio.encode import ENCODERS
from sidecar.requests import RESPONSE_FORMATS

ROOT = Path(__file__).parents[2]
DOCUMENTS = ("README.md", "docs/api.md")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)

#: Added to every Python request: what the documents leave to the reader's eye.
CHECK = """
assert response.ok, response.text
assert response.headers["Content-Type"] == "{media_type}"
"""


def blocks(language: str, *, having: str) -> list[Any]:
    found = []
    for name in DOCUMENTS:
        text = (ROOT / name).read_text()
        for match in BLOCK.finditer(text):
            if match[1] == language and having in match[2]:
                line = text[: match.start()].count("\n") + 2
                found.append(pytest.param(match[2], id=f"{name}:{line}"))
    return found


PYTHON = blocks("python", having="requests.post")


def commands(beginning: str, *, having: str) -> list[Any]:
    """The single commands of the shell blocks, with the lines that a backslash or an open quote continues."""
    whole = re.compile(rf"^{re.escape(beginning)}(?:'[^']*'|\\\n|[^'\n])*$", re.MULTILINE)
    return [
        pytest.param(command, id=f"{block.id}-{index}")
        for block in blocks("bash", having=having)
        for index, command in enumerate(whole.findall(str(block.values[0])))
    ]


CURL = commands("curl ", having="curl ")
LAUNCHES = commands("python -m vox_serve", having="vox_serve.launch")
VLLM_SERVES = commands("vllm serve", having="vllm serve")


def test_the_documents_show_requests() -> None:
    assert len(PYTHON) >= 6
    assert len(CURL) >= 2
    assert len(LAUNCHES) >= 2


def here(example: str, url: str, folder: Path) -> str:
    return example.replace("http://localhost:8000", url).replace("/path/to/", f"{folder}/")


def assert_speech(path: Path) -> None:
    """A wav that any player takes: 24 kHz, mono, 16 bit, with something in it."""
    with wave.open(str(path)) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (24000, 1, 2)
        assert len(file.readframes(10**6)) > 2 * 2400


@pytest.mark.vllm
@pytest.mark.parametrize("example", PYTHON)
def test_a_python_request_works_as_shown(example: str, server: Any, recordings: Path) -> None:
    media_type = "audio/wav" if "/generate" in example else "application/json"
    program = here(example, server.url, recordings) + CHECK.format(media_type=media_type)
    ran = subprocess.run(
        [sys.executable, "-c", program], cwd=recordings, capture_output=True, text=True, timeout=300, check=False
    )
    assert ran.returncode == 0, ran.stderr
    if "output.wav" in example:
        assert_speech(recordings / "output.wav")


@pytest.mark.vllm
@pytest.mark.parametrize("example", CURL)
def test_a_curl_request_works_as_shown(example: str, server: Any, recordings: Path) -> None:
    command = here(example, server.url, recordings) + " --fail-with-body --silent --show-error"
    ran = subprocess.run(
        ["bash", "-c", command], cwd=recordings, capture_output=True, text=True, timeout=300, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    written = re.search(r"-o (\S+\.wav)", example)
    if written:
        assert_speech(recordings / written[1])


@pytest.mark.parametrize("example", LAUNCHES)
def test_a_launch_is_understood_as_shown(example: str) -> None:
    ours, dashes, vllm = example.strip().partition(" -- ")
    command = f"{ours} --dry-run{dashes}{vllm}".replace("python -m", f"{sys.executable} -m", 1)
    environment = {**os.environ, "STEP_AUDIO_PORT": ""}
    ran = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, timeout=60, check=False, env=environment
    )
    assert ran.returncode == 0, ran.stderr
    assert "-m sidecar" in ran.stdout


@pytest.mark.vllm
def test_vllm_knows_the_flags_that_are_shown_for_it() -> None:
    shown = {flag for one in VLLM_SERVES for flag in re.findall(r"--[a-z][a-z-]+", str(one.values[0]))}
    assert len(shown) >= 4
    helped = subprocess.run(
        [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--help=all"],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    assert sorted(shown - set(re.findall(r"--[a-z][a-z-]+", helped.stdout))) == []


def test_every_flag_is_in_the_readme() -> None:
    helped = subprocess.run(
        [sys.executable, "-m", "vox_serve.launch", "--help"], capture_output=True, text=True, check=True, timeout=60
    )
    flags = set(re.findall(r"--[a-z][a-z-]+", helped.stdout)) - {"--help"}
    assert len(flags) > 15
    readme = (ROOT / "README.md").read_text()
    assert sorted(flag for flag in flags if f"`{flag}" not in readme) == []


def test_the_api_lists_every_format_with_its_media_type() -> None:
    formats = (ROOT / "docs/api.md").read_text().partition("\n## Formats\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)`[^|]*\| `([^`]+)`", formats, re.MULTILINE)
    assert rows == [(name, ENCODERS[name].media_type) for name in RESPONSE_FORMATS]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_document_names_only_files_that_exist(name: str) -> None:
    text = (ROOT / name).read_text()
    linked = re.findall(r"\]\((?!https?:|#)([^)#]+)\)", text)
    assert [path for path in linked if not ((ROOT / name).parent / path).exists()] == []


def test_the_map_names_only_files_that_exist() -> None:
    readme = (ROOT / "README.md").read_text()
    rows = re.findall(r"^\| `([\w./]+)` \|", readme[readme.index("## The map of files") :], re.MULTILINE)
    assert len(rows) > 10
    assert [row for row in rows if not (ROOT / row).exists()] == []
