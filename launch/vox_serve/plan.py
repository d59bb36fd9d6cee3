"""Flags -> the commands to run: pure, so that what will happen can be read before it does (`--dry-run`).

The folder of the model and the folder of the engine's socket are known only once the plan is carried out, so the
commands name them `$MODEL_FOLDER` and `$RUN_FOLDER`; `Plan.services` fills them in.
"""

from __future__ import annotations

import ipaddress
import shlex
from dataclasses import dataclass
from pathlib import Path

from sidecar.settings import ENGINE_KEY_VARIABLE, ENGINE_PART
from vox_serve.command import LEAVES_NOTHING, MODEL_FOLDER, RUN_FOLDER, Command, python_module
from vox_serve.engine_command import ENGINE_HOST, PLUGIN, engine_command
from vox_serve.engine_memory import engine_memory
from vox_serve.flags import TINY, Flags, flag_words
from vox_serve.machine import Machine
from vox_serve.mps import MPS_ENVIRONMENT, Daemon, mps_daemon
from vox_serve.placement import place

#: huggingface_hub draws no bar where it sees no terminal, unless told to; a line for each file and 5 s is enough.
SHOW_PROGRESS = {"TQDM_POSITION": "-1", "TQDM_MININTERVAL": "5"}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What runs, in order: `prepare` one after the other, `daemon`, then `engine` and `sidecar` together; or, where
    `sidecar_first`, the engine once the sidecar misses nothing else.

    `model_folder` is None where the last of `prepare` prints it. `notes` are for the user, before anything starts.
    """

    prepare: tuple[Command, ...]
    engine: Command
    sidecar: Command
    model_folder: str | None
    ready_url: str
    url: str
    daemon: Daemon | None = None
    sidecar_first: bool = False
    notes: tuple[str, ...] = ()

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
        lines = [*(f"# {note}" for note in self.notes), *before, last, "RUN_FOLDER=$(mktemp -d)"]
        lines += [self.daemon.start.shell_line()] if self.daemon else []
        engine, sidecar = f"{self.engine.shell_line()} &", f"{self.sidecar.shell_line()} &"
        if self.sidecar_first:
            lines += [sidecar, f"# once {self.ready_url} lists {ENGINE_PART} as the first that is missing:", engine]
        else:
            lines += [engine, sidecar]
        lines.append(f"# ready when {self.ready_url} answers 200")
        lines += ["# at the end of both:", f"# {self.daemon.end.shell_line()}"] if self.daemon else []
        return "\n".join(lines)


def make_plan(flags: Flags, machine: Machine, *, engine_key: str) -> Plan:
    """The commands for these flags on this machine.

    Args:
        engine_key: guards the engine where it listens on a port; unused with a socket.

    Raises:
        SettingsError: flags that cannot work with this machine's GPUs.
    """
    prepare, folder = _prepare(flags, machine)
    url = f"http://{_reachable(flags.host)}:{flags.port}"
    placement = place(flags, machine)
    memory = engine_memory(flags, placement, on_gpu=machine.gpu, model_folder=None if prepare else folder)
    engine = engine_command(flags, machine, engine_key, streams=placement.settings.slots, memory=memory.options)
    daemon = mps_daemon() if flags.mps else None
    everywhere = MPS_ENVIRONMENT if daemon else {}
    return Plan(
        prepare=prepare,
        engine=engine.with_environment({**placement.engine_environment, **everywhere}),
        sidecar=_sidecar(flags, machine, placement.settings.device, engine_key).with_environment(
            {**placement.sidecar_environment, **everywhere}
        ),
        model_folder=folder,
        ready_url=f"{url}/ready",
        url=url,
        daemon=daemon,
        # vLLM counts what is free when it starts, and may not see it change while it does
        sidecar_first=placement.shared,
        notes=memory.notes,
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


def _sidecar(flags: Flags, machine: Machine, device: str, key: str) -> Command:
    words = ["--model", MODEL_FOLDER, "--served-model-name", flags.model]
    words += ["--host", flags.host, "--port", str(flags.port)]
    if flags.engine_port is not None:
        words += ["--engine-url", f"http://{ENGINE_HOST}:{flags.engine_port}"]
    else:
        words += ["--engine-socket", f"{RUN_FOLDER}/vllm.sock"]
    if machine.gpu:
        words += ["--device", device]
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
