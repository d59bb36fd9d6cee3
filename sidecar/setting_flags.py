"""How one setting is written: as a flag of a command line, and as a variable of the environment.

A setting is a dataclass field whose metadata `flag` made. Only the standard library is imported here.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, Field
from typing import Any

from sidecar.errors import SettingsError

ENVIRONMENT_PREFIX = "STEP_AUDIO_"


def flag(
    parse: Callable[[str], Any],
    help: str,
    *,
    choices: Sequence[str] | None = None,
    repeatable: bool = False,
    metavar: str | None = None,
) -> dict[str, Any]:
    """Metadata of a field that can be set: how its word is read, and what `--help` says of it.

    `metavar` stands there for the word itself; the last part of the flag's name where not given.
    """
    return {"parse": parse, "help": help, "choices": choices, "repeatable": repeatable, "metavar": metavar}


def switch(word: str) -> bool:
    """Parses a setting that is on or off: a flag without a word, 1 or 0 in the environment."""
    if word not in ("0", "1"):
        raise ValueError("it is 1 or 0")
    return word == "1"


def with_home(path: str) -> str:
    """Parses a path whose `~` no shell has seen to, as in `--voice-dir=~/voices` or in the environment."""
    return os.path.expanduser(path)  # noqa: PTH111  a pathlib one takes the ./ off, and raises for ~nobody


def has_flag(setting: Field[Any]) -> bool:
    return "parse" in setting.metadata


def add_flag(parser: argparse.ArgumentParser, setting: Field[Any]) -> None:
    """Add the setting's flag, with dashes and with underscores; where not given it leaves nothing in the namespace."""
    dashed = setting.name.replace("_", "-")
    spellings = dict.fromkeys([f"--{dashed}", f"--{setting.name}"])
    words = setting.metadata["help"].replace("%", "%%")
    if setting.metadata["parse"] is switch:
        parser.add_argument(*spellings, action="store_true", default=argparse.SUPPRESS, help=words)
        return
    if setting.default not in (MISSING, None, ()):
        words += f" (default: {setting.default})"
    parser.add_argument(
        *spellings,
        type=setting.metadata["parse"],
        choices=setting.metadata["choices"],
        action="append" if setting.metadata["repeatable"] else "store",
        default=argparse.SUPPRESS,
        metavar=_metavar(setting),
        help=words,
    )


def _metavar(setting: Field[Any]) -> str | None:
    if setting.metadata["choices"]:
        return None
    return setting.metadata["metavar"] or setting.name.rpartition("_")[2].upper()


def from_environment(settings: Iterable[Field[Any]], environment: Mapping[str, str]) -> dict[str, Any]:
    """Values of the settings whose variable is set, and not to nothing.

    Raises:
        SettingsError: a value that cannot be read, naming its variable.
    """
    given: dict[str, Any] = {}
    for setting in settings:
        variable = ENVIRONMENT_PREFIX + setting.name.upper()
        if environment.get(variable, "") != "":
            given[setting.name] = _parsed(setting, variable, environment[variable])
    return given


def _parsed(setting: Field[Any], variable: str, text: str) -> Any:
    parse = setting.metadata["parse"]
    try:
        if setting.metadata["repeatable"]:
            return tuple(parse(part) for part in text.split(os.pathsep) if part)
        return parse(text)
    except ValueError as error:
        raise SettingsError(f"{variable} is {text!r}: {error}") from error
