"""The launcher's command line: the sidecar's flags, a few of its own, and all after `--` for vLLM."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sidecar.errors import SettingsError
from sidecar.setting_flags import ENVIRONMENT_PREFIX
from sidecar.settings import DEVICE, DEVICE_IN_WORDS, PromptSettings, Settings, add_flags
from step_audio_vllm.siblings import CHAT_FORMATS, ChatFormat, chat_format_name

#: The sidecar's flags that the launcher takes too. Their defaults and words are the sidecar's.
SHARED = (
    "host", "port", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_tokens", "greedy", "seed",
    "max_batch_size", "max_model_len", "system_prompt", "tts_system_prompt", "allowed_audio_path", "voice", "voice_dir",
    "voice_memory_mb", "dtype", "log_level",
)  # fmt: skip

TINY = "tiny"
AUTO = "auto"
#: Enough for the longest reply, 4,096 tokens, after a recording of five minutes; its keys and values take half a
#: gigabyte of a GPU.
MAX_MODEL_LEN = 8192
TINY_MAX_MODEL_LEN = 4096

#: vLLM's options that would part it from the sidecar, or from what was counted, and what to give before the `--`.
BEFORE_THE_DASHES = {
    "--model": "--model",
    "--served-model-name": "--model, which is its name too,",
    "--max-model-len": "--max-model-len",
    "--uds": "--engine-port, or neither,",
    "--api-key": "--engine-port, which comes with a key,",
}

DESCRIPTION = """\
Starts the language model under vLLM and the sidecar that speaks, and stops both together. Everything after a `--` is
handed to vLLM as it is. The sidecar's further settings are read from the environment (`python -m sidecar --help`)."""


@dataclass(frozen=True, kw_only=True)
class Flags:
    """What was asked for.

    `settings` are the sidecar's, read as it will read them; their device is not yet what the machine makes of it.
    `sidecar` holds only the flags that were given, by their setting's name; what was not given is left to the
    sidecar, which knows the defaults.
    """

    model: str
    host: str
    port: int
    max_model_len: int
    settings: Settings
    gpu_memory_utilization: float | None = None
    token2wav_device: str | None = None
    mps: bool = False
    chat_format: ChatFormat = CHAT_FORMATS["mini"]
    log_level: str | None = None
    engine_port: int | None = None
    dry_run: bool = False
    sidecar: Mapping[str, Any] = field(default_factory=dict)
    vllm: tuple[str, ...] = ()

    @property
    def vllm_options(self) -> set[str]:
        """The options after the `--`, with dashes; vLLM takes underscores too."""
        return {word.partition("=")[0].replace("_", "-") for word in self.vllm if word.startswith("--")}


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
    tiny = given["model"] == TINY
    # read as the sidecar will read them, the environment included, so that it refuses here what it would refuse later
    settings = Settings.from_flags([f"--model={given['model']}", *flag_words(shared)], environment)
    chat_format = _chat_format(given["model"], given.get("chat_format", AUTO))
    flags = Flags(
        model=given["model"],
        host=settings.host,
        port=settings.port,
        max_model_len=settings.engine.max_model_len or (TINY_MAX_MODEL_LEN if tiny else MAX_MODEL_LEN),
        settings=settings,
        gpu_memory_utilization=given.get("gpu_memory_utilization"),
        token2wav_device=given.get("token2wav_device") or environment.get(f"{ENVIRONMENT_PREFIX}DEVICE") or None,
        mps="mps" in given,
        chat_format=chat_format,
        log_level=shared.get("log_level") or environment.get(f"{ENVIRONMENT_PREFIX}LOG_LEVEL") or None,
        engine_port=given.get("engine_port"),
        dry_run="dry_run" in given,
        sidecar=shared if chat_format.has_turns else shared | _prompts_without_turns(settings.prompts),
        vllm=vllm,
    )
    _refuse_nonsense(flags)
    return flags


def _split_at_dashes(argv: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
    if "--" not in argv:
        return list(argv), ()
    at = list(argv).index("--")
    return list(argv[:at]), tuple(argv[at + 1 :])


def _chat_format(model: str, wanted: str) -> ChatFormat:
    """What was asked for, or what the name of the hub id or folder says."""
    return CHAT_FORMATS[chat_format_name(str(Path(model).expanduser().absolute())) if wanted == AUTO else wanted]


def _prompts_without_turns(prompts: PromptSettings) -> dict[str, str]:
    """The instructions in a form that needs no turns, where the user has not chosen others.

    What goes before a text ends its own line, and a recording is continued without being told to.
    """
    usual = PromptSettings()
    fitting: dict[str, str] = {}
    if prompts.system_prompt == usual.system_prompt:
        fitting["system_prompt"] = ""
    if prompts.tts_system_prompt == usual.tts_system_prompt:
        fitting["tts_system_prompt"] = f"{usual.tts_system_prompt}\n"
    return fitting


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
    parser.add_argument(
        "--chat-format",
        "--chat_format",
        choices=[AUTO, *CHAT_FORMATS],
        help="how the model is talked to: in turns (mini), in turns that begin with a thought (think), or by text and "
        "sound that it continues (base); auto goes by the end of the model's name, -Think or -Base (default: auto)",
    )
    add_flags(parser, set(SHARED) - {"max_model_len"})
    parser.add_argument(
        "--max-model-len",
        "--max_model_len",
        type=int,
        metavar="TOKENS",
        help=f"tokens of context (default: {MAX_MODEL_LEN}; tiny: {TINY_MAX_MODEL_LEN})",
    )
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
        help="share of its GPU's memory that vLLM takes, for those who know better than the launcher (default: on one "
        "GPU what token2wav leaves, in bytes; on a GPU of its own vLLM's usual share)",
    )
    parser.add_argument(
        "--token2wav-device",
        "--token2wav_device",
        metavar="DEVICE",
        help="where token2wav computes: cuda, beside vLLM on the first GPU; cuda:1 and on, a GPU of its own; or cpu "
        "(default: cuda where there is an NVIDIA GPU, else cpu)",
    )
    parser.add_argument(
        "--mps",
        action="store_true",
        help="let vLLM and token2wav compute at the same moment on the GPU they share: starts NVIDIA's CUDA MPS for "
        "the two of them, and ends it with them",
    )
    parser.add_argument(
        "--dry-run", "--dry_run", action="store_true", help="print the commands that would run, and end"
    )
    return parser


def flag_words(given: Mapping[str, Any]) -> list[str]:
    """Settings as the words of a command line, in the order given."""
    words: list[str] = []
    for name, value in given.items():
        flag = f"--{name.replace('_', '-')}"
        if value is True:
            words.append(flag)
        else:
            for one in map(str, value if isinstance(value, list) else [value]):
                # a text that begins with a dash would be read as a flag
                words += [f"{flag}={one}"] if one.startswith("-") else [flag, one]
    return words


def _refuse_nonsense(flags: Flags) -> None:
    """What the sidecar's own settings cannot know of."""
    port = flags.engine_port
    if port is not None and not 0 <= port <= 65535:
        raise SettingsError(f"--engine-port is {port}; it must be between 1 and 65535, or 0 for any free one")
    if flags.port == port != 0:
        raise SettingsError(f"--port and --engine-port are both {port}; give vLLM another one")
    if misplaced := sorted(BEFORE_THE_DASHES.keys() & flags.vllm_options):
        instead = BEFORE_THE_DASHES[misplaced[0]]
        raise SettingsError(f"{misplaced[0]} stands after the --, hidden from the sidecar; give {instead} before it")
    device = flags.token2wav_device
    if device is not None and not DEVICE.fullmatch(device):
        raise SettingsError(f"--token2wav-device is {device!r}; {DEVICE_IN_WORDS}")
    share = flags.gpu_memory_utilization
    if share is not None and not 0 < share < 1:
        raise SettingsError(f"--gpu-memory-utilization is {share:g}; it must be above 0 and below 1")
