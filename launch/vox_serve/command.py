"""One command of a plan: what to run, with folders that are known only later, and how it looks in a shell."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

#: Stand in a command for the folders that are known once the plan is carried out.
MODEL_FOLDER = "$MODEL_FOLDER"
RUN_FOLDER = "$RUN_FOLDER"

#: vLLM, torch and onnxruntime leave sockets, folders and files where temporary ones go: these go with the run folder.
LEAVES_NOTHING = {"TMPDIR": RUN_FOLDER}

SECRETS = ("KEY", "TOKEN")


@dataclass(frozen=True, kw_only=True)
class Command:
    """One command: its name in the log, what to run, and what it adds to the environment.

    `landmarks` are pairs of a piece of its log and what it is busy with after that; `first_phase` is what it is busy
    with before the first.
    """

    name: str
    argv: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    first_phase: str = ""
    landmarks: tuple[tuple[str, str], ...] = ()

    def with_folders(self, folders: Mapping[str, str]) -> Command:
        def fill(text: str) -> str:
            for name, folder in folders.items():
                text = text.replace(name, folder)
            return text

        return replace(
            self,
            argv=tuple(fill(word) for word in self.argv),
            environment={name: fill(value) for name, value in self.environment.items()},
        )

    def with_environment(self, more: Mapping[str, str]) -> Command:
        return replace(self, environment={**self.environment, **more})

    def shell_line(self) -> str:
        """The command for a shell, with the secrets left out."""
        hidden = {
            name: "..." if name.endswith(SECRETS) and value else value for name, value in self.environment.items()
        }
        words = [f"{name}={_quoted(value)}" for name, value in hidden.items()]
        return " ".join([*words, *map(_quoted, self.argv)])


def python_module(module: str, *words: str) -> tuple[str, ...]:
    return (sys.executable, "-m", module, *words)


def _quoted(word: str) -> str:
    for name in (MODEL_FOLDER, RUN_FOLDER):
        if word.startswith(name):
            return f'"{name}"{shlex.quote(word.removeprefix(name)) if word != name else ""}'
    return shlex.quote(word)
