"""The picture of a streamed reply: its borders are where the server's chunks met."""

from __future__ import annotations

import io
import sys
from dataclasses import dataclass
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import soundfile
import torch
from speech_parts import FaultyToken2Wav

from sidecar.settings import StreamSettings
from sidecar.streaming.chunking import Chunker, ChunkPlan
from sidecar.timebase import SAMPLE_RATE_HZ, tokens_to_samples
from sidecar.token2wav import inspect as command
from sidecar.token2wav.inspect import CHUNK_TOKENS, borders, level_db
from sidecar.token2wav.state import OpenedVoice
from sidecar.token2wav.synthetic_voice import vowel_recording

OVERLAP_SAMPLES = 3840


@dataclass(frozen=True)
class ListedSizes(ChunkPlan):
    """Sizes one by one; the last repeats."""

    sizes: tuple[int, ...] = ()

    def new_tokens(self, chunk_index: int) -> int:
        return self.sizes[min(chunk_index, len(self.sizes) - 1)]


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    path = tmp_path / "vowels.wav"
    path.write_bytes(vowel_recording(2.5))
    return path


@pytest.mark.parametrize("sizes", [(10, 20, 25), (1, 1, 1, 1, 1, 9), (25,), (5, 7)])
def test_borders_are_where_a_streams_pieces_meet(
    token2wav: FaultyToken2Wav, voice: OpenedVoice, sizes: tuple[int, ...]
) -> None:
    tokens = 61
    chunker = Chunker(ListedSizes(1, 1, sizes), lookahead_tokens=3)
    chunker.feed([7] * tokens)
    chunker.finish()
    state, given, ends = token2wav.start(voice, seed=1), 0, []
    while chunker.peek() is not None:
        chunk = chunker.take()
        samples, (state,) = token2wav.step(torch.tensor([chunk.tokens]), [state], last=chunk.last)
        given += samples.shape[1]
        if given and not chunk.last:
            ends.append(given)
    found = borders(given, sizes)
    assert given == tokens_to_samples(tokens)
    assert [border.sample for border in found] == ends
    assert all(border.seam_end == border.sample + OVERLAP_SAMPLES for border in found)


@pytest.mark.parametrize("tokens", [0, 1, 4, 10, 12, 13, 40])
def test_a_short_reply_has_few_borders_and_none_outside_it(tokens: int) -> None:
    found = borders(tokens_to_samples(tokens), CHUNK_TOKENS)
    assert len(found) == {40: 3}.get(tokens, int(tokens >= 13))
    assert all(0 < border.sample < border.seam_end <= tokens_to_samples(tokens) for border in found)


def test_the_picture_is_written_beside_the_sound_with_the_servers_own_chunks(
    recording: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        assert command.main([str(recording)]) == 0
    height, width, _ = matplotlib.image.imread(recording.with_suffix(".png")).shape
    assert width > height > 300
    sizes = StreamSettings()
    plan = ChunkPlan(sizes.first_chunk_tokens, sizes.chunk_tokens)
    assert plan.sizes == CHUNK_TOKENS
    first = tokens_to_samples(sizes.first_chunk_tokens) - OVERLAP_SAMPLES
    assert f"border 1: sample {first}, {first / SAMPLE_RATE_HZ:.3f} s" in caplog.messages
    assert caplog.messages[-1] == f"{recording.with_suffix('.png')} written"


def test_chunks_and_the_border_to_look_at_can_be_chosen(recording: Path, tmp_path: Path) -> None:
    pictures = {}
    for name, flags in {
        "other": ["--chunk-tokens", "5,7"],
        "zoom": ["--chunk-tokens", "5,7", "--zoom", "2"],
        "again": ["--chunk-tokens", "5,7,7"],
    }.items():
        out = tmp_path / f"{name}.png"
        assert command.main([str(recording), "--out", str(out), *flags]) == 0
        pictures[name] = matplotlib.image.imread(out).tobytes()
    assert pictures["zoom"] != pictures["other"]
    assert pictures["again"] == pictures["other"]


def test_any_rate_and_channels_are_drawn_at_24_khz(recording: Path, tmp_path: Path) -> None:
    tone = np.sin(np.arange(48_000) * 0.05).astype(np.float32) * 0.5
    soundfile.write(tmp_path / "stereo.flac", np.stack([tone, tone], axis=1), 48_000)
    assert command.read_sound(tmp_path / "stereo.flac").shape == (24_000,)
    assert command.read_sound(recording).shape == (60_000,)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--zoom", "5"], "this sound has 4 borders"),
        (["--zoom", "0"], "this sound has 4 borders"),
        (["--zoom", "1", "--chunk-tokens", "100"], "this sound has 0 borders"),
        (["--out", "/nowhere/picture.png"], "No such file"),
    ],
)
def test_what_cannot_be_drawn_is_said(
    recording: Path, caplog: pytest.LogCaptureFixture, flags: list[str], words: str
) -> None:
    assert command.main([str(recording), *flags]) == 1
    assert words in caplog.text


def test_files_that_are_no_sound_are_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    click = io.BytesIO()
    soundfile.write(click, np.zeros(400), SAMPLE_RATE_HZ, format="WAV")
    for contents, words in ((None, "cannot be read"), (b"text", "cannot be read"), (click.getvalue(), "needs 480")):
        path = tmp_path / "text.wav"
        if contents is not None:
            path.write_bytes(contents)
        assert command.main([str(path)]) == 1
        assert str(path) in caplog.messages[-1]
        assert words in caplog.messages[-1]


@pytest.mark.parametrize("sizes", ["", "ten", "10,0", "10,,20"])
def test_chunk_sizes_that_are_none_are_refused(recording: Path, capsys: pytest.CaptureFixture[str], sizes: str) -> None:
    with pytest.raises(SystemExit):
        command.main([str(recording), "--chunk-tokens", sizes])
    assert "--chunk-tokens" in capsys.readouterr().err


def test_without_matplotlib_it_says_what_to_install(
    recording: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert command.main([str(recording)]) == 1
    assert "pip install 'step-audio-serve[plot]'" in caplog.text


def test_the_level_is_that_of_a_window_against_full_scale() -> None:
    samples = np.concatenate([np.full(24_000, 0.5, np.float32), np.zeros(24_000, np.float32)])
    seconds, decibels = level_db(samples)
    assert decibels[seconds < 0.99] == pytest.approx(-6.02, abs=0.01)
    assert decibels[seconds > 1.01] == pytest.approx(-80)
