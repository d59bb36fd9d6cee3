"""What every test may use, and a closing line that says what was skipped and why."""

from __future__ import annotations

import importlib.util
import os
import re
from collections import Counter
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from golden_folders import DATA
from vllm_server import VllmServer, serving, unused_port

# Before torch is imported anywhere: this process computes beside servers, and threads that outnumber the cores wait
# for each other in a spin.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Without a GPU, the kernels that test modules import are run by Triton's interpreter, on the CPU.

    Triton asks for it when a kernel is decorated, and when parts of its own are first imported, one of them only by the
    first launch: so that happens here. Afterwards the variable is gone again; no server that a test starts inherits it.
    """
    import torch  # noqa: PLC0415 - after OMP_NUM_THREADS is set

    # on a GPU, what others are held to is computed in float32, and not in TF32 as PyTorch's convolutions would
    torch.backends.cudnn.allow_tf32 = False
    with pytest.MonkeyPatch.context() as patch:
        if importlib.util.find_spec("triton") is not None and not torch.cuda.is_available():
            patch.setenv("TRITON_INTERPRET", "1")
            importlib.import_module("triton.experimental.gluon")
        return (yield)


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where this session's servers keep voices and the tiny checkpoint, instead of the user's own folder."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


@pytest.fixture
def free_port() -> int:
    """A port of loopback on which nobody listens at this moment."""
    return unused_port()


@pytest.fixture(scope="session")
def golden_server() -> Iterator[VllmServer]:
    """One vLLM for the whole session: the recorded tiny checkpoint, plain, in float32."""
    with serving(DATA / "llm" / "checkpoint", "--dtype", "float32") as server:
        yield server


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reasons = Counter(_reason(report) for report in terminalreporter.stats.get("skipped", []))
    terminalreporter.section("skipped" if reasons else "nothing was skipped")
    for reason, count in reasons.most_common():
        terminalreporter.write_line(f"{count} x {reason}")


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    words = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return re.sub(r"^Skipped: ", "", words)
