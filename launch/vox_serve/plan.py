"""Flags -> the commands to run: pure, so that what will happen can be read before it does (`--dry-run`).

The folder of the model and the folder of the engine's socket are known only once the plan is carried out, so the
commands name them `$MODEL_FOLDER` and `$RUN_FOLDER`; `Plan.services` fills them in.
"""

from __future__ import annotations

import ipaddress
import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from sidecar.settings import ENGINE_KEY_VARIABLE
from vox_serve.command import MODEL_FOLDER, RUN_FOLDER, Command
from vox_serve.flags import TINY, Flags, flag_words
from vox_serve.machine import Machine

PLUGIN = "step_audio_vllm"
ENGINE_HOST = "127.0.0.1"

#: Recordings in one prompt: a conversation's turns.
RECORDINGS_PER_PROMPT = 16
#: Of the tiny model: all its streams at once need a fraction of it, and little to reserve starts fast.
TINY_KV_CACHE_BYTES = 64 * 2**20
#: On a CPU: two replies of the real size. Without a number vLLM wants 92 % of the machine's memory to be free.
CPU_KV_CACHE_BYTES = 2**30

#: vLLM, torch and onnxruntime leave sockets, folders and files where temporary ones go: these go with the run folder.
LEAVES_NOTHING = {"TMPDIR": RUN_FOLDER}
#: huggingface_hub draws no bar where it sees no terminal, unless told to; a line for each file and 5 s is enough.
SHOW_PROGRESS = {"TQDM_POSITION": "-1", "TQDM_MININTERVAL": "5"}

#: What vLLM says on its way, and what it is busy with from then on.
VLLM_PHASES = (
    ("Resolved architecture", "vLLM is starting its engine"),
    ("Initializing a V1 LLM engine", "vLLM is starting its worker"),
    ("Starting to load model", "vLLM is loading the weights"),
    ("Loading weights took", "vLLM is trying the model and reserving memory"),
    ("KV cache size", "vLLM is warming up"),
    ("Starting vLLM", "vLLM is opening its server"),
    ("Application startup complete", ""),
)


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
        engine=_engine(flags, machine, engine_key),
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
        write = [_python(f"{module}.synthetic", folder, "--size", TINY) for module in (PLUGIN, "sidecar.token2wav")]
        words = "the tiny checkpoint is being written"
        return tuple(Command(name="tiny", argv=argv, first_phase=words) for argv in write), folder
    if is_hub_id(flags.model):
        fetch = Command(
            name="fetch",
            argv=_python(f"{PLUGIN}.fetch", flags.model),
            environment=SHOW_PROGRESS,
            first_phase="the checkpoint is being downloaded",
        )
        return (fetch,), None
    return (), str(Path(flags.model).expanduser().absolute())


def _engine(flags: Flags, machine: Machine, key: str) -> Command:
    talks = (flags.log_level or machine.environment.get("VLLM_LOGGING_LEVEL", "info")).lower() in ("debug", "info")
    return Command(
        name="vllm",
        argv=_python(
            "vllm.entrypoints.openai.api_server",
            *[word for option in _engine_options(flags, machine).items() for word in option],
            *_engine_switches(flags, machine),
            *flags.vllm,
        ),
        environment=_engine_environment(flags, machine, key),
        # a quiet vLLM does not say how far it is
        first_phase="vLLM is being imported" if talks else "",
        landmarks=VLLM_PHASES if talks else (),
    )


def _engine_options(flags: Flags, machine: Machine) -> dict[str, str]:
    return {
        "--model": MODEL_FOLDER,
        "--served-model-name": flags.model,
        **(
            {"--host": ENGINE_HOST, "--port": str(flags.engine_port)}
            if flags.engine_port is not None
            else {"--uds": f"{RUN_FOLDER}/vllm.sock"}
        ),
        "--chat-template": str(machine.chat_template),
        "--chat-template-content-format": "openai",
        "--generation-config": "vllm",
        "--override-generation-config": json.dumps(_sampling_defaults(flags)),
        "--max-model-len": str(flags.max_model_len),
        "--max-num-seqs": str(flags.max_batch_size),
        "--limit-mm-per-prompt": f'{{"audio": {RECORDINGS_PER_PROMPT}}}',
        **_engine_memory(flags, machine),
    }


def _engine_memory(flags: Flags, machine: Machine) -> dict[str, str]:
    share = {"--gpu-memory-utilization": f"{flags.gpu_memory_utilization:g}"} if machine.gpu else {}
    if flags.model == TINY:
        return {**share, "--kv-cache-memory-bytes": str(TINY_KV_CACHE_BYTES)}
    return share or {"--kv-cache-memory-bytes": str(CPU_KV_CACHE_BYTES)}


def _engine_switches(flags: Flags, machine: Machine) -> list[str]:
    switches = ["--disable-uvicorn-access-log"]
    if flags.model == TINY or not machine.gpu:
        switches.append("--enforce-eager")
    if not machine.gpu:
        # a prompt computed in parts ends vLLM 0.32 when its request has a seed: the CPU's generator cannot step back
        switches.append("--no-enable-chunked-prefill")
    return switches


def _sampling_defaults(flags: Flags) -> dict[str, float]:
    """What vLLM's own endpoints take where a request does not say: the same as /generate takes."""
    sampling = flags.sampling
    return {
        "temperature": 0.0 if sampling.greedy else sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "repetition_penalty": sampling.repetition_penalty,
    }


def _engine_environment(flags: Flags, machine: Machine, key: str) -> dict[str, str]:
    ours = {"VLLM_NO_USAGE_STATS": "1", **LEAVES_NOTHING}
    if not machine.gpu:
        ours["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"  # binding needs rights that containers seldom give
        ours |= _half_the_cores(machine)
    if "HF_HUB_OFFLINE" not in machine.environment:
        ours["HF_HUB_OFFLINE"] = "1"  # everything is in the folder by now; without a network, asking takes minutes
    if flags.log_level is not None:
        ours["VLLM_LOGGING_LEVEL"] = flags.log_level.upper()
    plugins = machine.environment.get("VLLM_PLUGINS")
    if plugins is not None and PLUGIN not in plugins.split(","):
        ours["VLLM_PLUGINS"] = ",".join(filter(None, [plugins, PLUGIN]))
    if flags.engine_port is not None:
        ours["VLLM_API_KEY"] = key
    elif "VLLM_API_KEY" in machine.environment:
        ours["VLLM_API_KEY"] = ""  # the folder's mode guards the socket
    return ours


def _half_the_cores(machine: Machine) -> dict[str, str]:
    """Threads for each of the two processes, which compute at the same time on a CPU.

    With more threads than cores between them, each waits in a spin for the other's: measured on 2 cores, a step of
    token2wav beside a busy process took 20 to 100 times as long with 2 threads as with 1.
    """
    if "OMP_NUM_THREADS" in machine.environment:
        return {}
    return {"OMP_NUM_THREADS": str(max(1, machine.cores // 2))}


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
        argv=_python("sidecar", *words),
        environment={
            **LEAVES_NOTHING,
            **({} if machine.gpu else _half_the_cores(machine)),
            **({ENGINE_KEY_VARIABLE: key} if flags.engine_port is not None else {}),
        },
        first_phase="the sidecar is starting",
    )


def _python(module: str, *words: str) -> tuple[str, ...]:
    return (sys.executable, "-m", module, *words)


def _reachable(host: str) -> str:
    """Where a client on this machine finds a server that listens on `host`, for a URL."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if address.is_unspecified:
        address = ipaddress.ip_address("127.0.0.1" if address.version == 4 else "::1")
    return str(address) if address.version == 4 else f"[{address}]"
