"""How much of a GPU's memory vLLM may take, so that token2wav has room beside it."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sidecar.errors import SettingsError
from sidecar.memory import Token2WavMemory, gigabytes, token2wav_memory, what_fits
from vox_serve.flags import TINY, Flags
from vox_serve.gpus import Gpu
from vox_serve.placement import Placement

#: The released model in bfloat16, where there is no folder yet to look into.
WEIGHTS_BYTES = 16_600_000_000
#: Activations, the encoder at work on a recording, CUDA graphs, the CUDA context. With 128 streams on an H100, vLLM
#: 0.26 had taken 2.8 to 3.5 GB for these when it was ready.
WORK_BYTES = 4_000_000_000
#: Keys and values of one token: 28 layers, 4 heads, 128 numbers of 16 bits.
BYTES_PER_TOKEN = 28 * 2 * 4 * 128 * 2
#: A stream's share of the keys and values at the least: half a minute of speech with its text. With less for each, vLLM
#: would have to drop streams half-way and compute them again.
LEAST_TOKENS_PER_STREAM = 1024
#: vLLM keeps a block for itself.
BLOCK_TOKENS = 16

#: Of a GPU that token2wav computes nothing on.
FULL_SHARE = 0.9
#: What vLLM finds free at its start for certain, where its keys and values come as bytes anyway.
LOW_SHARE = 0.1
#: Of the tiny model: all its streams at once need a fraction of it, and little to reserve starts fast.
TINY_KV_CACHE_BYTES = 64 * 2**20
#: On a CPU: two replies of the real size. Without a number vLLM wants 92 % of the machine's memory to be free.
CPU_KV_CACHE_BYTES = 2**30

SHARE, KEYS_VALUES = "--gpu-memory-utilization", "--kv-cache-memory-bytes"
#: vLLM's second name for it.
SHARE_SINCE_0_31 = "--device-memory-utilization"


@dataclass(frozen=True, kw_only=True)
class EngineMemory:
    """vLLM's options, and what to say of them before it starts."""

    options: dict[str, str]
    notes: tuple[str, ...] = ()


def engine_memory(flags: Flags, placement: Placement, *, on_gpu: bool, model_folder: str | None) -> EngineMemory:
    """
    Raises:
        SettingsError: vLLM and token2wav do not fit into the GPU's memory, or nobody knows how much it has.
    """
    if not on_gpu:
        keys_values = TINY_KV_CACHE_BYTES if flags.model == TINY else CPU_KV_CACHE_BYTES
        return EngineMemory(options={KEYS_VALUES: str(keys_values)})
    if flags.model == TINY:
        options = _share(flags.gpu_memory_utilization or LOW_SHARE)
        return EngineMemory(options=options | {KEYS_VALUES: str(TINY_KV_CACHE_BYTES)})
    token2wav = token2wav_memory(placement.settings)
    if placement.shared:
        return _beside(token2wav, flags, placement.engine_gpu, weights_bytes(model_folder))
    if placement.token2wav_gpu is not None and placement.token2wav_gpu.total_bytes is not None:
        token2wav.refuse_too_little(placement.token2wav_gpu.total_bytes, "is what the GPU of --token2wav-device has")
    notes = (token2wav.words(),) if placement.settings.on_gpu else ()
    return EngineMemory(options=_share(flags.gpu_memory_utilization or FULL_SHARE), notes=notes)


def weights_bytes(model_folder: str | None) -> int:
    """Of the language model, by the checkpoint's own index or its files; the released one's where there are none."""
    folder = Path(model_folder or "")
    if model_folder is not None:
        with suppress(OSError, ValueError, KeyError, TypeError):
            return int(json.loads((folder / "model.safetensors.index.json").read_text())["metadata"]["total_size"])
        if files := list(folder.glob("*.safetensors")):
            return sum(file.stat().st_size for file in files)
    return WEIGHTS_BYTES


def _beside(token2wav: Token2WavMemory, flags: Flags, gpu: Gpu | None, weights: int) -> EngineMemory:
    """On token2wav's GPU. What the user says of vLLM's memory is not added to."""
    notes = (token2wav.words(),)
    if flags.gpu_memory_utilization is not None:
        if gpu is not None and gpu.total_bytes is not None:
            left = int(gpu.total_bytes * (1 - flags.gpu_memory_utilization))
            token2wav.at_least.refuse_too_little(left, f"is what {SHARE} {flags.gpu_memory_utilization:g} leaves")
        return EngineMemory(options=_share(flags.gpu_memory_utilization), notes=notes)
    if flags.vllm_options & {SHARE, SHARE_SINCE_0_31}:
        return EngineMemory(options={}, notes=notes)
    if KEYS_VALUES in flags.vllm_options:
        return EngineMemory(options=_share(LOW_SHARE), notes=notes)
    if gpu is None or gpu.total_bytes is None:
        raise SettingsError(
            "nvidia-smi does not say how much memory the GPU that CUDA_VISIBLE_DEVICES leaves has (of a MIG slice it "
            "never does), so it cannot be shared out; give --gpu-memory-utilization, vLLM's share of it"
        )
    keys_values = _keys_values(token2wav, flags, gpu.total_bytes, weights)
    # without the room for its work: vLLM checks at its start that so much is free, and may find a little less
    share = max(1, int(100 * (weights + keys_values) / gpu.total_bytes)) / 100
    engine = (
        f"vLLM: weights {gigabytes(weights)}, keys and values {gigabytes(keys_values)} for "
        f"{keys_values // BYTES_PER_TOKEN} tokens, activations and CUDA graphs {gigabytes(WORK_BYTES)}; the GPU has "
        f"{gigabytes(gpu.total_bytes)}"
    )
    return EngineMemory(options=_share(share) | {KEYS_VALUES: str(keys_values)}, notes=(*notes, engine))


def _keys_values(token2wav: Token2WavMemory, flags: Flags, total: int, weights: int) -> int:
    """What is left for them, but no more than all streams can fill."""
    left = total - token2wav.total - weights - WORK_BYTES
    each = min(LEAST_TOKENS_PER_STREAM, flags.max_model_len) * BYTES_PER_TOKEN
    one_reply = (flags.max_model_len + BLOCK_TOKENS) * BYTES_PER_TOKEN
    if left < max(one_reply, token2wav.streams * each):
        raise SettingsError(_too_much(token2wav, total, weights, each, one_reply))
    return min(left, (token2wav.streams * flags.max_model_len + BLOCK_TOKENS) * BYTES_PER_TOKEN)


def _too_much(token2wav: Token2WavMemory, total: int, weights: int, each: int, one_reply: int) -> str:
    engine = weights + WORK_BYTES

    def most(budget: Token2WavMemory) -> int:
        return min(
            budget.most_streams(total - engine, bytes_beside_each=each),
            budget.most_streams(total - engine - one_reply),
        )

    per_stream = token2wav.bytes_per_stream + each
    needed = (
        f"--max-batch-size {token2wav.streams} needs {gigabytes(token2wav.streams * per_stream)} of GPU memory, "
        f"{per_stream / 1e6:.0f} MB a stream with its keys and values in vLLM"
    )
    rest = (
        f"the GPU has {gigabytes(total)}, of which the language model takes {gigabytes(engine)} and token2wav's "
        f"weights, voices and workspaces {gigabytes(token2wav.without_streams)}; the keys and values of one reply of "
        f"--max-model-len are {gigabytes(one_reply)}"
    )
    where_else = (
        "--token2wav-device cuda:1 puts token2wav on a second GPU; for a language model that takes less than that, "
        "quantized say, give vLLM's share with --gpu-memory-utilization"
    )
    return f"{needed}; {rest}; {what_fits(most(token2wav), most(token2wav.at_least))}; {where_else}"


def _share(share: float) -> dict[str, str]:
    return {SHARE: f"{share:g}"}
