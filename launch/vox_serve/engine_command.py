"""Flags -> the command that runs vLLM: its options, its environment, and what its log says of how far it is."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

from step_audio_vllm.siblings import TOOL_PARSER, ChatFormat
from vox_serve.command import LEAVES_NOTHING, MODEL_FOLDER, RUN_FOLDER, Command, python_module
from vox_serve.flags import TINY, Flags
from vox_serve.machine import Machine

PLUGIN = "step_audio_vllm"
ENGINE_HOST = "127.0.0.1"

#: What the shortest items have in a prompt, their markers: recordings up to 20 ms, turns in which nothing was said. So
#: whatever fits the context is accepted. vLLM makes room for as many as a step can take, whatever the limit is.
TOKENS_PER_AUDIO_ITEM = 2

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


def engine_command(flags: Flags, machine: Machine, key: str, *, streams: int, memory: Mapping[str, str]) -> Command:
    """
    Args:
        streams: that may run at once.
        memory: the options that say how much vLLM takes.
    """
    talks = (flags.log_level or machine.environment.get("VLLM_LOGGING_LEVEL", "info")).lower() in ("debug", "info")
    return Command(
        name="vllm",
        argv=python_module(
            "vllm.entrypoints.openai.api_server",
            *[word for option in {**_engine_options(flags, streams), **memory}.items() for word in option],
            *_engine_switches(flags, machine),
            *flags.vllm,
        ),
        environment=_engine_environment(flags, machine, key),
        # a quiet vLLM does not say how far it is
        first_phase="vLLM is being imported" if talks else "",
        landmarks=VLLM_PHASES if talks else (),
    )


def _engine_options(flags: Flags, streams: int) -> dict[str, str]:
    return {
        "--model": MODEL_FOLDER,
        "--served-model-name": flags.model,
        **(
            {"--host": ENGINE_HOST, "--port": str(flags.engine_port)}
            if flags.engine_port is not None
            else {"--uds": f"{RUN_FOLDER}/vllm.sock"}
        ),
        **_engine_chat(flags.chat_format),
        "--generation-config": "vllm",
        "--override-generation-config": json.dumps(_sampling_defaults(flags)),
        "--max-model-len": str(flags.max_model_len),
        "--max-num-seqs": str(streams),
        "--limit-mm-per-prompt": json.dumps({"audio": flags.max_model_len // TOKENS_PER_AUDIO_ITEM}),
        "--tool-call-parser": TOOL_PARSER,
    }


def _engine_chat(chat_format: ChatFormat) -> dict[str, str]:
    options = {"--chat-template": str(chat_format.template), "--chat-template-content-format": "openai"}
    if chat_format.template_defaults:
        options["--default-chat-template-kwargs"] = json.dumps(chat_format.template_defaults)
    if chat_format.reasoning_parser is not None:
        options["--reasoning-parser"] = chat_format.reasoning_parser
    return options


def _engine_switches(flags: Flags, machine: Machine) -> list[str]:
    switches = ["--disable-uvicorn-access-log", "--enable-auto-tool-choice"]
    if flags.model == TINY or not machine.gpu:
        switches.append("--enforce-eager")
    if not machine.gpu:
        # a prompt computed in parts ends vLLM 0.32 when its request has a seed: the CPU's generator cannot step back
        switches.append("--no-enable-chunked-prefill")
    return switches


def _sampling_defaults(flags: Flags) -> dict[str, float]:
    """What vLLM's own endpoints take where a request does not say: the same as /generate takes."""
    sampling = flags.settings.sampling
    return {
        "temperature": 0.0 if sampling.greedy else sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "repetition_penalty": sampling.repetition_penalty,
    }


def _engine_environment(flags: Flags, machine: Machine, key: str) -> dict[str, str]:
    ours = {"VLLM_NO_USAGE_STATS": "1", **LEAVES_NOTHING, **machine.threads, **_room_for_recordings(flags)}
    if not machine.gpu:
        ours["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"  # binding needs rights that containers seldom give
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


def _room_for_recordings(flags: Flags) -> dict[str, str]:
    """vLLM's own limits of an upload to be transcribed, 600 s and 25 MiB, raised to ours: 16-bit PCM at 16 kHz."""
    seconds = math.ceil(flags.settings.limits.max_recording_seconds) + 1
    return {
        "VLLM_MAX_AUDIO_DECODE_DURATION_S": str(seconds),
        "VLLM_MAX_AUDIO_CLIP_FILESIZE_MB": str(math.ceil(seconds * 32_000 / 2**20)),
    }
