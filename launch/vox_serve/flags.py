"""The launcher's command line: the sidecar's flags, a few of its own, and all after `--` for vLLM."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sidecar.errors import SettingsError
from sidecar.settings import (
    ENVIRONMENT_PREFIX,
    LOG_LEVELS,
    LimitSettings,
    SamplingSettings,
    StreamSettings,
    add_flags,
    default_of,
)

#: The sidecar's flags that the launcher takes too. Their defaults and words are the sidecar's.
SAMPLING = (
    "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_tokens", "greedy", "seed",
)  # fmt: skip
SHARED = (
    "host", "port", *SAMPLING, "max_batch_size", "max_model_len", "system_prompt", "tts_system_prompt",
    "allowed_audio_path", "log_level",
)  # fmt: skip

TINY = "tiny"
DESCRIPTION = """\
Starts the language model under vLLM and the sidecar that speaks, and stops both together. Everything after a `--` is
handed to vLLM as it is. The sidecar's further settings are read from the environment (`python -m sidecar --help`)."""


@dataclass(frozen=True, kw_only=True)
class Flags:
    """What was asked for.

    `sidecar` holds only the flags that were given, by their setting's name; what was not given is left to the
    sidecar, which knows the defaults.
    """

    model: str
    host: str
    port: int
    max_batch_size: int
    max_model_len: int | None = None
    log_level: str | None = None
    engine_port: int | None = None
    gpu_memory_utilization: float | None = None
    dry_run: bool = False
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    sidecar: Mapping[str, Any] = field(default_factory=dict)
    vllm: tuple[str, ...] = ()


def parse_flags(argv: Sequence[str], environment: Mapping[str, str] | None = None) -> Flags:
    """Read a command line; `--top_p` and `--top-p` are the same, and so for each.

    Raises:
        SettingsError: a value that cannot work, naming its flag.
        SystemExit: argparse's own, after `--help` or for a flag it does not know.
    """
    environment = os.environ if environment is None else environment
    ours, vllm = _split_at_dashes(argv)
    given = vars(_parser().parse_args(ours))
    shared = {name: given[name] for name in SHARED if name in given}
    flags = Flags(
        model=given["model"],
        host=str(_value_of("host", shared, environment)),
        port=_whole_number("port", shared, environment),
        max_batch_size=_whole_number("max_batch_size", shared, environment),
        max_model_len=_whole_number("max_model_len", shared, environment) or None,
        log_level=shared.get("log_level") or environment.get(f"{ENVIRONMENT_PREFIX}LOG_LEVEL"),
        engine_port=given.get("engine_port"),
        gpu_memory_utilization=given.get("gpu_memory_utilization"),
        dry_run="dry_run" in given,
        sampling=SamplingSettings(**{name: given[name] for name in SAMPLING if name in given}),
        sidecar=shared,
        vllm=vllm,
    )
    _refuse_nonsense(flags)
    return flags


def _split_at_dashes(argv: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
    if "--" not in argv:
        return list(argv), ()
    at = list(argv).index("--")
    return list(argv[:at]), tuple(argv[at + 1 :])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vox-serve", usage="%(prog)s --model MODEL [options] [-- vLLM's options]", description=DESCRIPTION,
        allow_abbrev=False, argument_default=argparse.SUPPRESS,
    )  # fmt: skip
    parser.add_argument(
        "--model",
        required=True,
        help="a checkpoint's folder, its id on the Hugging Face hub, or `tiny`: a made-up checkpoint of a few "
        "megabytes that goes the whole way and whose voice is noise",
    )
    add_flags(parser, SHARED)
    parser.add_argument(
        "--engine-port",
        "--engine_port",
        type=int,
        metavar="PORT",
        help="let vLLM listen on this port of 127.0.0.1, with a random key, instead of a private unix socket",
    )
    parser.add_argument(
        "--gpu-memory-utilization",
        "--gpu_memory_utilization",
        type=float,
        metavar="SHARE",
        help="share of the GPU's memory for vLLM; the rest is left to token2wav (default: 0.8)",
    )
    parser.add_argument(
        "--dry-run", "--dry_run", action="store_true", help="print the commands that would run, and end"
    )
    return parser


def _value_of(name: str, given: Mapping[str, Any], environment: Mapping[str, str]) -> Any:
    """As the sidecar reads it: the flag, else the environment, else the default."""
    if name in given:
        return given[name]
    return environment.get(ENVIRONMENT_PREFIX + name.upper()) or default_of(name)


def _whole_number(name: str, given: Mapping[str, Any], environment: Mapping[str, str]) -> int:
    value = _value_of(name, given, environment)
    try:
        return int(value or 0)
    except ValueError as error:
        variable = ENVIRONMENT_PREFIX + name.upper()
        raise SettingsError(f"{variable} is {value!r}; it must be a whole number") from error


def _refuse_nonsense(flags: Flags) -> None:
    """Let the sidecar's own settings look at what will be passed on, before anything is started."""
    StreamSettings(max_batch_size=flags.max_batch_size)
    LimitSettings(allowed_audio_path=tuple(map(Path, flags.sidecar.get("allowed_audio_path", ()))))
    if flags.max_model_len is not None and flags.max_model_len < 2:
        raise SettingsError(f"--max-model-len is {flags.max_model_len}; it must be at least 2")
    for name, port in (("port", flags.port), ("engine-port", flags.engine_port)):
        if port is not None and not 0 <= port <= 65535:
            raise SettingsError(f"--{name} is {port}; it must be between 1 and 65535, or 0 for any free one")
    if flags.port == flags.engine_port != 0:
        raise SettingsError(f"--port and --engine-port are both {flags.port}; give vLLM another one")
    share = flags.gpu_memory_utilization
    if share is not None and not 0 < share < 1:
        raise SettingsError(f"--gpu-memory-utilization is {share:g}; it must be above 0 and below 1")
    if flags.log_level not in (None, *LOG_LEVELS):
        raise SettingsError(f"--log-level is {flags.log_level!r}; it must be one of {', '.join(LOG_LEVELS)}")
