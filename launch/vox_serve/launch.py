"""`python -m vox_serve.launch` and the `vox-serve` command: flags -> plan -> supervisor."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

from sidecar.errors import SettingsError
from vox_serve.engine_command import ENGINE_HOST
from vox_serve.flags import Flags, parse_flags
from vox_serve.machine import (
    free_port,
    refuse_missing_folder,
    refuse_taken_port,
    refuse_what_cannot_run,
    this_machine,
)
from vox_serve.plan import make_plan
from vox_serve.supervisor import Supervisor


def say(line: str) -> None:
    """One line for the user; standard output stays free for `--dry-run`'s plan."""
    with suppress(OSError):  # a reader that went away must not stop the speakers
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()


def serve(argv: Sequence[str]) -> int:
    """Run until stopped; returns the exit code.

    Raises:
        SettingsError: the flags cannot work, or not on this machine.
    """
    flags = with_free_ports(parse_flags(argv))
    machine = this_machine()
    plan = make_plan(flags, machine, engine_key=secrets.token_urlsafe(32))
    if flags.dry_run:
        sys.stdout.write(f"{plan.text()}\n")
        return 0
    if plan.model_folder is not None and not plan.prepare:
        refuse_missing_folder(flags.model, plan.model_folder)
    refuse_what_cannot_run(machine)
    refuse_taken_port("--port", flags.host, flags.port)
    if flags.engine_port is not None:
        refuse_taken_port("--engine-port", ENGINE_HOST, flags.engine_port)
    return Supervisor(say=say).run(plan)


def with_free_ports(flags: Flags) -> Flags:
    """The same flags with a free port in the place of each 0."""
    return replace(
        flags,
        port=flags.port or free_port("--port", flags.host),
        engine_port=free_port("--engine-port", ENGINE_HOST) if flags.engine_port == 0 else flags.engine_port,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """The command: what cannot work is one sentence and exit code 2."""
    try:
        return serve(sys.argv[1:] if argv is None else argv)
    except SettingsError as error:
        say(f"vox-serve: {error.message}")
        return 2


if __name__ == "__main__":
    sys.exit(main())
