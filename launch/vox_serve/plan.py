"""Flags -> the commands to run: pure, so that what will happen can be read before it does (`--dry-run`).

The folder of the model and the folder of the engine's socket are known only once the plan is carried out, so the
commands name them `$MODEL_FOLDER` and `$RUN_FOLDER`; `Plan.services` fills them in.
"""

from __future__ import annotations

import ipaddress
import shlex
from dataclasses import dataclass
from pathlib import Path

from sidecar.settings import ENGINE_KEY_VARIABLE
from vox_serve.command import LEAVES_NOTHING, MODEL_FOLDER, RUN_FOLDER, Command, python_module
from vox_serve.engine_command import ENGINE_HOST, PLUGIN, engine_command
from vox_serve.flags import TINY, Flags, flag_words
from vox_serve.machine import Machine

#: huggingface_hub draws no bar where it sees no terminal, unless told to; a line for each file and 5 s is enough.
SHOW_PROGRESS = {"TQDM_POSITION": "-1", "TQDM_MININTERVAL": "5"}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What runs, in order: `prepare` one after the other, then `engine` and `sidecar` together.

    `model_folder` is None where the last of `prepare` prints it.
    """

    prepare: tuple[Command, ...]
    engine: Command
    sidecar: Command
    model_folder: str | None
    ready_url: str
    url: str

    def services(self, *, model_folder: str, run_folder: str) -> tuple[Command, Command]:
        folders = {MODEL_FOLDER: model_folder, RUN_FOLDER: run_folder}
        return self.engine.with_folders(folders), self.sidecar.with_folders(folders)

    def text(self) -> str:
        """The plan as shell lines; each could be typed."""
        *before, last = [command.shell_line() for command in self.prepare] or [""]
        if self.model_folder is None:
            last = f"MODEL_FOLDER=$({last})"
        else:
            last = "\n".join(filter(None, [last, f"MODEL_FOLDER={shlex.quote(self.model_folder)}"]))
        run_folder = "RUN_FOLDER=$(mktemp -d)"
        together = [f"{self.engine.shell_line()} &", f"{self.sidecar.shell_line()} &"]
        return "\n".join([*before, last, run_folder, *together, f"# ready when {self.ready_url} answers 200"])


def make_plan(flags: Flags, machine: Machine, *, engine_key: str) -> Plan:
    """The commands for these flags on this machine.

    Args:
        engine_key: guards the engine where it listens on a port; unused with a socket.
    """
    prepare, folder = _prepare(flags, machine)
    url = f"http://{_reachable(flags.host)}:{flags.port}"
    return Plan(
        prepare=prepare,
        engine=engine_command(flags, machine, engine_key),
        sidecar=_sidecar(flags, machine, engine_key),
        model_folder=folder,
        ready_url=f"{url}/ready",
        url=url,
    )


def is_hub_id(model: str) -> bool:
    """Whether this names a model of the hub rather than a folder."""
    owner, _, name = model.partition("/")
    return not Path(model).expanduser().exists() and bool(owner.strip("~.")) and bool(name) and "/" not in name


def _prepare(flags: Flags, machine: Machine) -> tuple[tuple[Command, ...], str | None]:
    if flags.model == TINY:
        folder = str(machine.cache_folder / TINY)
        write = [
            python_module(f"{module}.synthetic", folder, "--size", TINY) for module in (PLUGIN, "sidecar.token2wav")
        ]
        words = "the tiny checkpoint is being written"
        return tuple(Command(name="tiny", argv=argv, first_phase=words) for argv in write), folder
    if is_hub_id(flags.model):
        fetch = Command(
            name="fetch",
            argv=python_module(f"{PLUGIN}.fetch", flags.model),
            environment=SHOW_PROGRESS,
            first_phase="the checkpoint is being downloaded",
        )
        return (fetch,), None
    return (), str(Path(flags.model).expanduser().absolute())


def _sidecar(flags: Flags, machine: Machine, key: str) -> Command:
    words = ["--model", MODEL_FOLDER, "--served-model-name", flags.model]
    words += ["--host", flags.host, "--port", str(flags.port)]
    if flags.engine_port is not None:
        words += ["--engine-url", f"http://{ENGINE_HOST}:{flags.engine_port}"]
    else:
        words += ["--engine-socket", f"{RUN_FOLDER}/vllm.sock"]
    if machine.gpu:
        words += ["--device", "cuda"]
    words += flag_words({name: value for name, value in flags.sidecar.items() if name not in ("host", "port")})
    return Command(
        name="sidecar",
        argv=python_module("sidecar", *words),
        environment={
            **LEAVES_NOTHING,
            **machine.threads,
            **({ENGINE_KEY_VARIABLE: key} if flags.engine_port is not None else {}),
        },
        first_phase="the sidecar is starting",
    )


def _reachable(host: str) -> str:
    """Where a client on this machine finds a server that listens on `host`, for a URL."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if address.is_unspecified:
        address = ipaddress.ip_address("127.0.0.1" if address.version == 4 else "::1")
    return str(address) if address.version == 4 else f"[{address}]"
