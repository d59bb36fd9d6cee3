"""What a stream holds that goes on and on, and the benchmark that shows it."""

from __future__ import annotations

import asyncio
import gc
import json
from pathlib import Path

import endless
import pytest
import torch
from speech_parts import FaultyToken2Wav
from tiny_token2wav import speech_tokens, tiny_token2wav, voice_of

from sidecar.streaming.chunking import ChunkPlan
from sidecar.streaming.scheduler import StreamScheduler
from sidecar.streaming.steps import EagerSteps
from sidecar.timebase import tokens_to_samples
from sidecar.token2wav.state import OpenedVoice


def test_the_benchmark_shows_both_policies_over_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chunks_path, plot_path = tmp_path / "chunks.json", tmp_path / "plot.png"
    endless.main(["--minutes", "0.1", "--chunk-tokens", "50", "--json", str(chunks_path), "--plot", str(plot_path)])
    policies = json.loads(chunks_path.read_text(encoding="utf-8"))["policies"]
    assert policies.keys() == {"ours", "the authors'"}
    for chunks in policies.values():
        assert chunks[-1]["minutes"] == 0.1, "every token has been spoken"
        assert all(chunk["ms"] > 0 and chunk["rss_mb"] > 50 for chunk in chunks)
    assert "| RSS at most, MB |" in capsys.readouterr().out
    assert plot_path.stat().st_size > 10_000


def tensor_bytes() -> int:
    """Memory of all tensors that are alive; a small view counts as all that it keeps."""
    gc.collect()
    tensors = (found for found in gc.get_objects() if issubclass(type(found), torch.Tensor))
    # other tests of the process may have left sparse ones, which have no storage of their own
    storages = (tensor.untyped_storage() for tensor in tensors if tensor.layout == torch.strided)
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def test_once_its_windows_are_full_a_stream_holds_no_byte_more() -> None:
    token2wav, held = tiny_token2wav(steps=1), []

    async def test() -> None:
        scheduler = StreamScheduler(EagerSteps(token2wav), ChunkPlan(100, 100))
        scheduler.start()
        stream = scheduler.open(token2wav.open_voice(voice_of(5)), seed=1)
        stream.feed(speech_tokens(103).tolist())
        async for _ in stream.samples():
            held.append(tensor_bytes())
            if len(held) == 11:
                break
            stream.feed(speech_tokens(100).tolist())
        await scheduler.close()

    asyncio.run(asyncio.wait_for(test(), 60))
    assert held[6] < held[7] == held[8] == held[9] == held[10], "750 tokens are remembered"


def test_a_stream_that_nobody_reads_keeps_its_sound_and_nothing_else(
    token2wav: FaultyToken2Wav, voice: OpenedVoice
) -> None:
    async def test() -> None:
        scheduler = StreamScheduler(EagerSteps(token2wav), ChunkPlan(10, 25))
        scheduler.start()
        stream = scheduler.open(voice, seed=1)
        stream.feed(speech_tokens(200).tolist())
        stream.finish()
        while not stream.ended:
            await asyncio.sleep(0.01)
        assert stream.playing is None, "its keys and values are free before anybody has heard it"
        pieces = [piece async for piece in stream.samples()]
        assert sum(piece.nbytes for piece in pieces) == 4 * tokens_to_samples(200)
        assert all(piece.base is None for piece in pieces), "a view would keep its whole batch alive"
        await scheduler.close()

    asyncio.run(asyncio.wait_for(test(), 60))
