"""How many opened voices stay in memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from voice_parts import CountingOpener, recording, use

from sidecar.errors import Full
from sidecar.token2wav import Token2Wav
from sidecar.token2wav.state import OpenedVoice
from sidecar.voices.library import VoiceLibrary
from sidecar.voices.opened import memory_bytes

MakeLibrary = Callable[..., VoiceLibrary]


@pytest.fixture
def four(voice_dir: Path) -> Path:
    """A folder of v0, v1, v2 and v3, all of the same length."""
    for number in range(4):
        (voice_dir / f"v{number}.wav").write_bytes(recording(100 + number))
    return voice_dir


@pytest.fixture
def one_mb(make_library: MakeLibrary, four: Path) -> float:
    """Megabytes of one of them."""
    return memory_bytes(use(make_library(voice_dir=four), lambda library: library.get("v0"))) / 1e6


async def builds(opener: CountingOpener, library: VoiceLibrary, names: str) -> str:
    """Which of the voices (by their digits) had to be built, when asked for in this order."""
    built = ""
    for name in names:
        before = opener.builds
        await library.get(f"v{name}")
        built += name * (opener.builds - before)
    return built


@pytest.mark.parametrize(
    ("room_for", "asked", "built"),
    [
        (4.1, "01230123", "0123"),
        (2.1, "010101", "01"),
        (2.1, "0120", "0120"),  # 2 took the place of 0
        (2.1, "01020", "012"),  # but not if 0 was just heard
        (2.1, "010212", "0121"),
        (0.5, "00011", "01"),  # the newest stays though it is too large
    ],
)
def test_the_voice_unheard_for_longest_is_let_go_first(
    make_library: MakeLibrary,
    opener: CountingOpener,
    four: Path,
    one_mb: float,
    room_for: float,
    asked: str,
    built: str,
) -> None:
    library = make_library(voice_dir=four, memory_mb=room_for * one_mb)
    assert use(library, lambda library: builds(opener, library, asked)) == built


def test_the_default_voice_is_never_let_go_and_does_not_count(
    make_library: MakeLibrary, opener: CountingOpener, four: Path, one_mb: float
) -> None:
    (four / "v4.wav").write_bytes((four / "v3.wav").read_bytes())  # the default voice by another name
    library = make_library(voice="v3", voice_dir=four, memory_mb=2.1 * one_mb)

    async def ask(library: VoiceLibrary) -> str:
        await library.default()
        return await builds(opener, library, "0120143")

    assert use(library, ask) == "01201"


def test_a_stream_of_a_voice_that_was_let_go_speaks_on_unchanged(
    make_library: MakeLibrary, token2wav: Token2Wav, four: Path, one_mb: float
) -> None:
    tokens = torch.arange(1, 12)[None]

    async def ask(library: VoiceLibrary) -> tuple[torch.Tensor, torch.Tensor]:
        let_go = await library.get("v0")
        stream = token2wav.start(let_go, seed=1)
        await library.get("v1")
        again = await library.get("v0")
        assert again is not let_go
        return (
            token2wav.step(tokens, [stream], last=True)[0],
            token2wav.step(tokens, [token2wav.start(again, seed=1)], last=True)[0],
        )

    spoke_on, anew = use(make_library(voice_dir=four, memory_mb=0), ask)
    assert torch.equal(spoke_on, anew)


def test_a_voice_without_room_is_refused_in_words_and_idle_ones_make_room(
    make_library: MakeLibrary, four: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def ask(library: VoiceLibrary) -> None:
        heard = await library.get("v0")
        with monkeypatch.context() as full:
            full.setattr(Token2Wav, "open_voice", no_room)
            with pytest.raises(Full, match="no room for another voice"):
                await library.get("v1")
        assert await library.get("v0") is not heard, "it was let go"
        await library.get("v1")

    def no_room(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    use(make_library(voice_dir=four), ask)


def test_memory_is_that_of_all_tensors(make_library: MakeLibrary) -> None:
    voice: OpenedVoice = use(make_library(), VoiceLibrary.default)
    encoder, estimator = voice.flow.encoder, voice.flow.estimator
    tensors = [
        voice.flow.speaker,
        encoder.lookahead_past,
        encoder.upsample_past,
        encoder.token_keys_values,
        encoder.frame_keys_values,
        estimator.conv_past,
        estimator.keys_values,
    ]
    assert memory_bytes(voice) >= sum(tensor.nbytes for tensor in tensors)
