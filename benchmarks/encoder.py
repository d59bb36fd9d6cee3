"""How long the audio encoder takes for a batch of recordings, next to what its arithmetic needs on this machine.

    python benchmarks/encoder.py                 the real model's sizes, bfloat16, on the GPU
    python benchmarks/encoder.py --size tiny     on the CPU too, in float32: shows that it runs, nothing more

The last column is the time over that of one large matrix product with as many floating-point operations. Padding is
none of them: a batch that pads pays for it here.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from machine import machine

from step_audio_vllm.config import StepAudio2EncoderConfig
from step_audio_vllm.encoder import Adapter, AudioEncoder, embed_chunks
from step_audio_vllm.features import SAMPLE_RATE_HZ, mel_frames
from step_audio_vllm.synthetic import SIZES, config_json

#: Seconds of sound in each recording of a batch.
BATCHES: dict[str, list[float]] = {
    "8 x 25 s": [25] * 8,
    "25 s": [25],
    "10 s": [10],
    "3 s": [3],
    "16 x 3 s": [3] * 16,
    "2 x (25, 18, 10, 3 s)": [25, 18, 10, 3] * 2,
    "32 from 2 to 9.75 s": [2 + i / 4 for i in range(32)],
}


def chunk_flops(frames: int, config: StepAudio2EncoderConfig) -> int:
    """Floating-point operations of the matrix products for one chunk of that many log-mel frames."""
    C, half, quarter = config.n_audio_state, (frames + 1) // 2, (frames + 1) // 4
    convolutions = 3 * (config.n_mels * C * frames + C * C * half)
    layer = half * (4 + 8) * C * C + 2 * half * half * C  # projections and MLP, then attention
    out = (quarter + 1) // 2
    adapter = out * (config.kernel_size * C * C + C * 2048 + 2048 * config.llm_dim)
    return 2 * (convolutions + config.n_audio_layer * layer + adapter)


def median_s(work: Callable[[], object], repeats: int, device: torch.device) -> float:
    """From the call until the device has done it, warmed up."""
    times: list[float] = []
    for _ in range(3 + repeats):
        _wait(device)
        begun = time.perf_counter()
        work()
        _wait(device)
        times.append(time.perf_counter() - begun)
    return statistics.median(times[3:])


def matrix_rate(size: int, repeats: int, device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a product of two square matrices of random numbers."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / median_s(lambda: a @ b, repeats, device)


def measure(size: str, device: torch.device, repeats: int) -> list[tuple[str, float, float, float]]:
    """Name, seconds, FLOPs and times the arithmetic's need, of the large product first, then of every batch."""
    on_gpu = device.type == "cuda"
    dtype = torch.bfloat16 if on_gpu else torch.float32
    config = StepAudio2EncoderConfig(**config_json(SIZES[size], end_of_text_id=0)["audio_encoder_config"])
    with device:
        torch.manual_seed(0)
        encoder, adapter = AudioEncoder(config).to(dtype), Adapter(config).to(dtype)
    edge = 8192 if on_gpu else 1024
    rate = matrix_rate(edge, repeats, device, dtype)
    rows = [(f"a product of {edge} x {edge} matrices", 2 * edge**3 / rate, float(2 * edge**3), 1.0)]
    for name, seconds in BATCHES.items():
        frames = [mel_frames(int(s * SAMPLE_RATE_HZ)) for s in seconds]
        chunks = [torch.randn(n, config.n_mels, device=device, dtype=dtype) for n in frames]
        took = median_s(lambda chunks=chunks: embed_chunks(encoder, adapter, chunks), repeats, device)  # type: ignore[misc]
        flops = sum(chunk_flops(n, config) for n in frames)
        rows.append((name, took, float(flops), took * rate / flops))
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=sorted(SIZES), default="full")
    parser.add_argument("--repeats", type=int, default=20, help="timings each, of which the median (default: 20)")
    wanted = parser.parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cuda.enable_cudnn_sdp(False)  # as vLLM does
    print(f"{machine()}\n\n| batch | ms | TFLOP | TFLOP/s | x its arithmetic |\n|---|---|---|---|---|")
    with torch.inference_mode():
        for name, took, flops, times in measure(wanted.size, device, wanted.repeats):
            print(f"| {name} | {took * 1e3:.1f} | {flops / 1e12:.3f} | {flops / took / 1e12:.1f} | {times:.2f} |")


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
