"""Every setting of the sidecar: its default, its words for `--help`, and what it refuses.

A value comes from its flag, else from the environment (`--top-p` is `STEP_AUDIO_TOP_P`), else from the default
written here. Only the standard library is imported, so that the launcher can read defaults and help from here
without loading anything else.
"""

from __future__ import annotations

import argparse
import ipaddress
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any

from sidecar.errors import SettingsError
from sidecar.setting_flags import ENVIRONMENT_PREFIX, add_flag, flag, from_environment, has_flag, switch, with_home
from sidecar.voice_names import NAME_IN_WORDS, is_voice_name

#: The key of the engine's HTTP server: from the environment alone, since a command line is open to every user.
ENGINE_KEY_VARIABLE = f"{ENVIRONMENT_PREFIX}ENGINE_KEY"
#: On an answer of /ready: whose it is. Who started a server may find another one at its port, faster to take it.
PROCESS_ID_HEADER = "X-Process-Id"
#: The language model in the `missing` of a 503 of /ready, which lists parts in the order in which they are found. Once
#: it stands first, the sidecar has loaded, opened its voice and captured its steps: what it needs of a GPU, it has.
ENGINE_PART = "engine"

#: The authors' wording for reading a text aloud, and for answering a recording.
TTS_SYSTEM_PROMPT = "Read this paragraph at a natural pace."
SYSTEM_PROMPT = "You are a helpful assistant."

LOG_LEVELS = ("debug", "info", "warning", "error")
#: What `auto` stands for is in `Settings.precision`.
DTYPES = ("auto", "float16", "bfloat16", "float32")

#: Where token2wav computes: a name as torch writes it.
DEVICE = re.compile(r"cpu|cuda(:\d+)?")
DEVICE_IN_WORDS = "it must be cpu, cuda, or cuda:1 and on for another GPU"

#: Streams at once where nothing else is asked for.
GPU_SLOTS, CPU_SLOTS = 64, 16


def _within(name: str, value: float, low: float, high: float = math.inf, *, open_low: bool = False) -> None:
    too_low = value <= low if open_low else value < low
    if not math.isfinite(value) or too_low or value > high:
        at_least = "above" if open_low else "at least"
        at_most = "" if high == math.inf else f" and at most {high:g}"
        raise SettingsError(f"--{name} is {value:g}; it must be {at_least} {low:g}{at_most}")


@dataclass(frozen=True, kw_only=True)
class SamplingSettings:
    """How the model's next token is drawn where a request does not say; the defaults are the authors'."""

    temperature: float = field(default=0.7, metadata=flag(float, "sampling temperature; 0 is greedy"))
    top_p: float = field(default=0.9, metadata=flag(float, "draw from the likeliest tokens that make up this share"))
    top_k: int = field(default=-1, metadata=flag(int, "draw from this many likeliest tokens; -1 is off"))
    min_p: float = field(default=0.0, metadata=flag(float, "drop tokens less likely than this share of the likeliest"))
    repetition_penalty: float = field(
        default=1.05, metadata=flag(float, "above 1 makes tokens that came before less likely")
    )
    max_tokens: int = field(
        default=4096, metadata=flag(int, "tokens a reply may have at most, text and speech together")
    )
    greedy: bool = field(
        default=False, metadata=flag(switch, "always take the likeliest token, whatever --temperature says")
    )
    seed: int | None = field(
        default=None, metadata=flag(int, "seed of requests that bring none (default: a fresh one each)")
    )

    def __post_init__(self) -> None:
        _within("temperature", self.temperature, 0, 2)
        _within("top-p", self.top_p, 0, 1, open_low=True)
        _within("top-k", self.top_k, -1)
        _within("min-p", self.min_p, 0, 1)
        _within("repetition-penalty", self.repetition_penalty, 0, 2, open_low=True)
        _within("max-tokens", self.max_tokens, 1)
        if self.seed is not None:
            _within("seed", self.seed, 0, 2**63 - 1)


@dataclass(frozen=True, kw_only=True)
class StreamSettings:
    """How speech is cut into chunks, and how many listeners there may be."""

    first_chunk_tokens: int = field(
        default=10, metadata=flag(int, "speech tokens in a reply's first chunk; few start sooner, 5 soonest")
    )
    chunk_tokens: int = field(
        default=25, metadata=flag(int, "speech tokens in a chunk once the size has grown; many cost less")
    )
    max_batch_size: int | None = field(
        default=None,
        metadata=flag(
            int,
            f"streams at once; the next one is answered 503 (default: {GPU_SLOTS} on a GPU, {CPU_SLOTS} on a CPU)",
        ),
    )

    def __post_init__(self) -> None:
        # below 5, the first chunk gives no sound yet: the vocoder keeps the newest 8 mel frames for the next seam
        _within("first-chunk-tokens", self.first_chunk_tokens, 1)
        if self.max_batch_size is not None:
            _within("max-batch-size", self.max_batch_size, 1)
        if self.first_chunk_tokens > self.chunk_tokens:
            raise SettingsError(
                f"--first-chunk-tokens ({self.first_chunk_tokens}) is above --chunk-tokens "
                f"({self.chunk_tokens}); lower it: a small first chunk is what makes the first sound come soon"
            )


@dataclass(frozen=True, kw_only=True)
class LimitSettings:
    """What a single request may bring.

    The model's longest context, 16,384 tokens, is full after 1,300 s of sound: as 16-bit 48 kHz stereo they have
    250 MB, as 16 kHz mono in base64 56 MB. What fits the context in use is checked once a recording has been decoded;
    these two bound what it takes to get there.
    """

    max_body_mb: float = field(
        default=256.0, metadata=flag(float, "megabytes (10^6) a request or a recording may have")
    )
    max_recording_seconds: float = field(
        default=1300.0, metadata=flag(float, "seconds a recording may last, where the context holds so much")
    )
    max_text_characters: int = field(
        default=4096,
        metadata=flag(
            int,
            "characters a text, a system prompt or a transcription's prompt may have (a chat's texts: what the "
            "context holds)",
        ),
    )
    allowed_audio_path: tuple[Path, ...] = field(
        default=(),
        metadata=flag(
            Path,
            "folder that audio_path may read from; may be given several times (default: any file while "
            "listening on loopback, else none)",
            repeatable=True,
        ),
    )

    def __post_init__(self) -> None:
        _within("max-body-mb", self.max_body_mb, 0, open_low=True)
        _within("max-recording-seconds", self.max_recording_seconds, 0, open_low=True)
        _within("max-text-characters", self.max_text_characters, 1)
        for folder in self.allowed_audio_path:
            if not folder.is_dir():
                raise SettingsError(f"--allowed-audio-path {folder} is not a folder; create it or name another")

    @property
    def max_body_bytes(self) -> int:
        return int(self.max_body_mb * 1_000_000)


@dataclass(frozen=True, kw_only=True)
class PromptSettings:
    """The system turns of the two modes."""

    system_prompt: str = field(default=SYSTEM_PROMPT, metadata=flag(str, "system turn for replies to a recording"))
    tts_system_prompt: str = field(
        default=TTS_SYSTEM_PROMPT, metadata=flag(str, "system turn for reading a text aloud")
    )


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """Where the language model answers: vLLM's OpenAI server on a unix socket or a URL."""

    engine_socket: Path | None = field(default=None, metadata=flag(Path, "unix socket of the language model's server"))
    engine_url: str | None = field(
        default=None, metadata=flag(str, "URL of the language model's server, instead of a socket")
    )
    served_model_name: str | None = field(default=None, metadata=flag(str, "name the model goes by (default: --model)"))
    max_model_len: int | None = field(
        default=None, metadata=flag(int, "tokens of context (default: what the engine says)")
    )
    engine_key: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.engine_socket is not None and self.engine_url is not None:
            raise SettingsError("--engine-socket and --engine-url both say where the engine is; give one of them")
        if self.engine_url is not None and not self.engine_url.startswith(("http://", "https://")):
            raise SettingsError(f"--engine-url is {self.engine_url!r}; it must begin with http:// or https://")
        if self.max_model_len is not None:
            _within("max-model-len", self.max_model_len, 2)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The sidecar's settings: what it serves and where, and the parts."""

    model: Path = field(metadata=flag(Path, "folder of the checkpoint"))
    host: str = field(
        default="127.0.0.1",
        metadata=flag(str, "address to listen on; anything but loopback opens the server to others"),
    )
    port: int = field(default=8000, metadata=flag(int, "port to listen on; 0 takes a free one"))
    device: str = field(default="cpu", metadata=flag(str, "where token2wav computes: cpu, cuda, cuda:1 ..."))
    dtype: str = field(
        default="auto",
        metadata=flag(str, "precision of token2wav; auto is float16 on a GPU, float32 on a CPU", choices=DTYPES),
    )
    voice: str | None = field(
        default=None,
        metadata=flag(
            with_home,
            "the default voice: the name of one of the checkpoint, its authors (default_female, default_male) or "
            "--voice-dir, or a recording of 1 to 30 s (./mine where the path looks like a name) (default: the "
            "checkpoint's own, else default_female)",
            metavar="NAME|PATH",
        ),
    )
    voice_dir: Path | None = field(
        default=None,
        metadata=flag(
            lambda word: Path(with_home(word)),
            "folder of voices: NAME.wav, .flac, .ogg, .mp3 ... in it speak as NAME, and POST /v1/voices keeps its "
            "recordings there (default: a temporary one, which goes with the server)",
        ),
    )
    voice_memory_mb: float = field(
        default=4000.0,
        metadata=flag(
            float,
            "megabytes (10^6) that opened voices may take where token2wav computes, the default voice not counted; "
            "beyond it the one unheard for longest is closed, and opened anew when it is asked for",
        ),
    )
    log_level: str = field(default="info", metadata=flag(str, "least serious message to log", choices=LOG_LEVELS))
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    stream: StreamSettings = field(default_factory=StreamSettings)
    limits: LimitSettings = field(default_factory=LimitSettings)
    prompts: PromptSettings = field(default_factory=PromptSettings)
    engine: EngineSettings = field(default_factory=EngineSettings)

    def __post_init__(self) -> None:
        _within("port", self.port, 0, 65535)
        _within("voice-memory-mb", self.voice_memory_mb, 0)
        for name, value, choices in (
            ("dtype", self.dtype, DTYPES),
            ("log-level", self.log_level, LOG_LEVELS),
        ):
            if value not in choices:
                raise SettingsError(f"--{name} is {value!r}; it must be one of {', '.join(choices)}")
        if not DEVICE.fullmatch(self.device):
            raise SettingsError(f"--device is {self.device!r}; {DEVICE_IN_WORDS}")
        self._refuse_missing_voices()

    def _refuse_missing_voices(self) -> None:
        """Of a voice's name, the library says whether there is one."""
        if self.voice is not None and not is_voice_name(self.voice) and not Path(self.voice).is_file():
            raise SettingsError(
                f"--voice is {self.voice!r}, and there is no such file; give a recording of 1 to 30 s, or the name of "
                f"a voice: {NAME_IN_WORDS}"
            )
        if self.voice_dir is not None and self.voice_dir.exists() and not self.voice_dir.is_dir():
            raise SettingsError(f"--voice-dir {self.voice_dir} is not a folder; name another")

    @property
    def served_model_name(self) -> str:
        return self.engine.served_model_name or str(self.model)

    @property
    def on_gpu(self) -> bool:
        """Does token2wav compute on an NVIDIA GPU?"""
        return self.device.partition(":")[0] == "cuda"

    @property
    def precision(self) -> str:
        """`dtype`, with `auto` resolved."""
        if self.dtype != "auto":
            return self.dtype
        return "float16" if self.on_gpu else "float32"

    @property
    def slots(self) -> int:
        """Streams at once."""
        return self.stream.max_batch_size or (GPU_SLOTS if self.on_gpu else CPU_SLOTS)

    @property
    def on_loopback(self) -> bool:
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @classmethod
    def from_flags(cls, argv: Sequence[str], environment: Mapping[str, str] | None = None) -> Settings:
        """Settings from a command line and the environment.

        Raises:
            SettingsError: a value that cannot work, naming its flag.
            SystemExit: argparse's own, after `--help` or for a flag it does not know.
        """
        environment = os.environ if environment is None else environment
        parser = argparse.ArgumentParser(
            prog="python -m sidecar", description="Speech over HTTP, beside vLLM.", allow_abbrev=False
        )
        add_flags(parser)
        given = from_environment(_flags(), environment) | vars(parser.parse_args(argv))
        given = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
        if environment.get(ENGINE_KEY_VARIABLE):
            given["engine_key"] = environment[ENGINE_KEY_VARIABLE]
        if "model" not in given:
            raise SettingsError("--model is missing; give the folder of the checkpoint")
        parts = {
            name: part(**{key: given.pop(key) for key in _names(part) & given.keys()}) for name, part in _PARTS.items()
        }
        return cls(**given, **parts)


_PARTS: dict[str, Any] = {
    "sampling": SamplingSettings,
    "stream": StreamSettings,
    "limits": LimitSettings,
    "prompts": PromptSettings,
    "engine": EngineSettings,
}


def _names(part: Any) -> set[str]:
    return {setting.name for setting in fields(part)}


def _flags() -> Iterator[Field[Any]]:
    parts: tuple[Any, ...] = (Settings, *_PARTS.values())
    for part in parts:
        yield from filter(has_flag, fields(part))


def add_flags(parser: argparse.ArgumentParser, names: Iterable[str] | None = None) -> None:
    """Add the flags (all, or the `names`d ones, as `top_p`) to a parser, each with a dash and an underscore form.

    A flag that is not given leaves nothing in the namespace, so that a caller can pass on what was given alone.
    """
    wanted = None if names is None else set(names)
    for setting in _flags():
        if wanted is None or setting.name in wanted:
            add_flag(parser, setting)
