"""The plugin next to plain Qwen2 of the same size: start-up, milliseconds a decode step, prefill of a recording.

    python benchmarks/llm.py                                     the real model's sizes, on a GPU
    python benchmarks/llm.py --size tiny --streams 1 2 --tokens 64 -- \\
        --enforce-eager --max-model-len 2048 --kv-cache-memory-bytes 67108864        on a CPU: shows that it runs

Both get dummy weights and the same flags. They start one after the other and stay up together, so that what is compared
is measured within seconds on the same machine; while one is timed the other is idle.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import random
import shutil
import statistics
import tempfile
import wave
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine_process import Engine, serving
from machine import machine
from streams import Decode, time_decode, time_prefill

from step_audio_vllm import CHAT_TEMPLATE
from step_audio_vllm.config import StepAudio2Config
from step_audio_vllm.features import SAMPLE_RATE_HZ
from step_audio_vllm.synthetic import SIZES, write_checkpoint

#: Both servers share one GPU of 80 GB: 16.6 GB of weights each, and keys and values for 128 streams of 1,700 tokens.
FLAGS = (
    "--load-format", "dummy", "--dtype", "bfloat16",
    "--max-model-len", "4096", "--max-num-seqs", "128",
    "--gpu-memory-utilization", "0.45", "--kv-cache-memory-bytes", str(12 * 1024**3),
    # the same prompt many times must cost what different prompts cost
    "--no-enable-prefix-caching",
    # otherwise the one HTTP process is what is measured at 128 streams
    "--stream-interval", "16",
    "--chat-template", str(CHAT_TEMPLATE), "--chat-template-content-format", "openai",
)  # fmt: skip

TEXT = {"type": "text", "text": "Please listen carefully, and then tell the news of today in your own words."}
PREFILLS = 8


def write_plain_qwen2(checkpoint: Path, folder: Path) -> None:
    """The same backbone and tokenizer under Qwen2's own name."""
    folder.mkdir()
    config = StepAudio2Config.from_pretrained(checkpoint).text_config.to_dict()
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "qwen2", "torch_dtype": "bfloat16"}))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(checkpoint / name, folder / name)


def recording(seconds: float, seed: int) -> dict[str, Any]:
    """A content part with noise that no other seed gives."""
    sink = io.BytesIO()
    with wave.open(sink, "wb") as wav:
        wav.setnchannels(1)
        wav.setsampwidth(2)
        wav.setframerate(SAMPLE_RATE_HZ)
        wav.writeframes(random.Random(seed).randbytes(2 * int(seconds * SAMPLE_RATE_HZ)))
    data = base64.b64encode(sink.getvalue()).decode()
    return {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}


def asking(engine: Engine, *content: dict[str, Any], tokens: int = 1) -> dict[str, Any]:
    messages = [{"role": "user", "content": list(content)}]
    return {"model": engine.model, "messages": messages, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}


async def print_decode(plugin: Engine, plain: Engine, streams: Sequence[int], tokens: int, rounds: int) -> None:
    """What is compared takes turns; what is shown is the median of the rounds, and half of their spread."""
    sound = recording(10, seed=0)
    loads = {
        "plain Qwen2": (plain, asking(plain, TEXT, tokens=tokens)),
        "plugin": (plugin, asking(plugin, TEXT, tokens=tokens)),
        "plugin, 10 s recording": (plugin, asking(plugin, sound, TEXT, tokens=tokens)),
    }
    timed: dict[tuple[int, str], list[Decode]] = {(count, name): [] for count in streams for name in loads}
    for turn in range(1 + rounds):  # the first one warms up
        for count, name in timed if turn % 2 else reversed(timed):
            engine, body = loads[name]
            decode = await time_decode(engine.url, body, count)
            if turn:
                timed[count, name].append(decode)
    print("| streams | model | prompt tokens | ms a step | by the client's clock | over plain Qwen2 |")
    print("|---|---|---|---|---|---|")
    for (count, name), decodes in timed.items():
        print(f"| {count} | {name} | {decodes[0].prompt_tokens} |", decode_cells(decodes, timed[count, "plain Qwen2"]))


def decode_cells(timed: Sequence[Decode], plain: Sequence[Decode]) -> str:
    steps = [decode.engine_ms for decode in timed]
    client = statistics.median(decode.client_ms for decode in timed)
    over = statistics.median(ours.engine_ms / theirs.engine_ms for ours, theirs in zip(timed, plain, strict=True))
    return f"{statistics.median(steps):.2f} ± {(max(steps) - min(steps)) / 2:.2f} | {client:.2f} | {over:.3f} |"


async def print_prefill(plugin: Engine, plain: Engine) -> None:
    """One request at a time; the first of each kind warms up."""
    bodies = {
        "plain Qwen2": (plain, [asking(plain, TEXT)] * (1 + PREFILLS)),
        "plugin": (plugin, [asking(plugin, TEXT)] * (1 + PREFILLS)),
        # each another one: none of vLLM's caches may know it
        "plugin, 25 s recording": (plugin, [asking(plugin, recording(25, n), TEXT) for n in range(1, 2 + PREFILLS)]),
    }
    print("\n| one request | ms of prefill | ms to the first token, by the client's clock |\n|---|---|---|")
    for name, (engine, requests) in bodies.items():
        await time_prefill(engine.url, requests[:1])
        timed = await time_prefill(engine.url, requests[1:])
        print(f"| {name} | {timed.engine_ms:.1f} | {timed.client_ms:.1f} |")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=sorted(SIZES), default="full")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 32, 128])
    parser.add_argument("--tokens", type=int, default=384, help="of each stream (default: 384)")
    parser.add_argument("--rounds", type=int, default=3, help="of which the median is shown (default: 3)")
    parser.add_argument("--logs", type=Path, default=Path(tempfile.gettempdir()), help="where vLLM's logs go")
    parser.add_argument("flags", nargs="*", help="more flags for both servers, after --")
    wanted = parser.parse_args(arguments)
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        ours, plain = Path(folder, "step-audio-2"), Path(folder, "qwen2")
        write_checkpoint(ours, wanted.size)
        write_plain_qwen2(ours, plain)
        flags = [*FLAGS, *wanted.flags]
        with serving(ours, flags, wanted.logs / "plugin.log") as plugin:
            print(f"ready after {plugin.ready_after_s:.0f} s: the plugin", flush=True)
            with serving(plain, flags, wanted.logs / "qwen2.log") as qwen2:
                print(f"ready after {qwen2.ready_after_s:.0f} s: plain Qwen2\n", flush=True)
                asyncio.run(print_decode(plugin, qwen2, wanted.streams, wanted.tokens, wanted.rounds))
                asyncio.run(print_prefill(plugin, qwen2))


if __name__ == "__main__":
    main()
