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
from vox_serve.flags import TINY, Flags
from vox_serve.machine import Machine

PLUGIN = "step_audio_vllm"
ENGINE_HOST = "127.0.0.1"

#: Enough for the longest reply, 4,096 tokens, after a recording of five minutes; its keys and values take half a
#: gigabyte of a GPU, so that the model fits one of 24 GB beside token2wav.
MAX_MODEL_LEN = 8192
#: vLLM's own default, 0.92, would leave token2wav no room on a GPU of 24 GB.
GPU_MEMORY_UTILIZATION = 0.8
#: Recordings in one prompt: a conversation's turns.
RECORDINGS_PER_PROMPT = 16
#: Of the tiny model: all its streams at once need a fraction of it, and little to reserve starts fast.
TINY_KV_CACHE_BYTES = 64 * 2**20
TINY_MAX_MODEL_LEN = 4096
TINY_GPU_MEMORY_UTILIZATION = 0.1

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
        fetch = _python(f"{PLUGIN}.fetch", flags.model)
        return (Command(name="fetch", argv=fetch, first_phase="the checkpoint is being downloaded"),), None
    return (), str(Path(flags.model).expanduser().absolute())


def _engine(flags: Flags, machine: Machine, key: str) -> Command:
    tiny = flags.model == TINY
    length = flags.max_model_len or (TINY_MAX_MODEL_LEN if tiny else MAX_MODEL_LEN)
    share = flags.gpu_memory_utilization or (TINY_GPU_MEMORY_UTILIZATION if tiny else GPU_MEMORY_UTILIZATION)
    options = {
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
        "--max-model-len": str(length),
        "--max-num-seqs": str(flags.max_batch_size),
        "--limit-mm-per-prompt": f'{{"audio": {RECORDINGS_PER_PROMPT}}}',
        **({"--gpu-memory-utilization": f"{share:g}"} if machine.gpu else {}),
        **({"--kv-cache-memory-bytes": str(TINY_KV_CACHE_BYTES)} if tiny else {}),
    }
    switches = ["--disable-uvicorn-access-log", *([] if machine.gpu and not tiny else ["--enforce-eager"])]
    words = [word for option in options.items() for word in option]
    return Command(
        name="vllm",
        argv=_python("vllm.entrypoints.openai.api_server", *words, *switches, *flags.vllm),
        environment=_engine_environment(flags, machine, key),
        first_phase="vLLM is being imported",
        landmarks=VLLM_PHASES,
    )


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
    ours = {"VLLM_NO_USAGE_STATS": "1"}
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
    for name, value in flags.sidecar.items():
        if name not in ("host", "port"):
            words += _flag_words(name, value)
    return Command(
        name="sidecar",
        argv=_python("sidecar", *words),
        environment={
            **({} if machine.gpu else _half_the_cores(machine)),
            **({ENGINE_KEY_VARIABLE: key} if flags.engine_port is not None else {}),
        },
        first_phase="the sidecar is starting",
    )


def _flag_words(name: str, value: object) -> list[str]:
    flag = f"--{name.replace('_', '-')}"
    if value is True:
        return [flag]
    if isinstance(value, list | tuple):
        return [word for one in value for word in (flag, str(one))]
    text = str(value)
    # a text that begins with a dash would be read as a flag
    return [f"{flag}={text}"] if isinstance(value, str) and text.startswith("-") else [flag, text]


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
