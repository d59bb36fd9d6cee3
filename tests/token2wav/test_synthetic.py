"""The synthetic token2wav: real names and shapes, the same bytes every time, and a noise that can be heard."""

from __future__ import annotations

import io
import wave
from math import ceil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file

from sidecar.timebase import SAMPLE_RATE_HZ, SAMPLES_PER_TOKEN
from sidecar.token2wav import synthetic
from sidecar.token2wav.config import load_flow_config
from sidecar.token2wav.state import VoiceFeatures
from sidecar.token2wav.synthetic_voice import vowel_recording
from sidecar.token2wav.token2wav import Token2Wav
from step_audio_vllm.synthetic import write_checkpoint

RECORDED = Path(__file__).parents[1] / "golden/data"
MOST_BYTES = 30_000_000


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = tmp_path_factory.mktemp("synthetic") / "tiny"
    assert synthetic.write_token2wav(model, "tiny")
    return model


def contents(model: Path) -> dict[str, bytes]:
    return {str(path.relative_to(model)): path.read_bytes() for path in model.rglob("*") if path.is_file()}


def test_vocoder_tensors_have_the_names_of_recorded_ones(tiny: Path) -> None:
    ours = torch.load(tiny / "token2wav/hift.pt", weights_only=True)
    assert ours.keys() == load_file(RECORDED / "hift/hift.safetensors").keys()


def test_the_same_seed_gives_the_same_bytes(tiny: Path, tmp_path: Path) -> None:
    synthetic.write_token2wav(tmp_path, "tiny")
    assert contents(tmp_path) == contents(tiny)


def test_another_seed_gives_other_weights(tiny: Path, tmp_path: Path) -> None:
    synthetic.write_token2wav(tmp_path, "tiny", seed=1)
    first, second = contents(tiny), contents(tmp_path)
    for name in ("flow.pt", "hift.pt", "campplus.onnx", "speech_tokenizer_v2_25hz.onnx"):
        assert first[f"token2wav/{name}"] != second[f"token2wav/{name}"], name


def test_the_whole_tiny_checkpoint_is_small(tiny: Path) -> None:
    write_checkpoint(tiny, "tiny")
    assert sum(map(len, contents(tiny).values())) < MOST_BYTES


def test_a_complete_folder_is_left_as_it_is_and_a_half_written_one_is_not(tiny: Path, tmp_path: Path) -> None:
    assert not synthetic.write_token2wav(tiny, "tiny")
    synthetic.write_token2wav(tmp_path, "tiny")
    marker = tmp_path / "token2wav" / synthetic.MARKER
    marker.write_text(marker.read_text().replace("true", "false"))
    (tmp_path / "token2wav/hift.pt").unlink()
    assert synthetic.write_token2wav(tmp_path, "tiny")
    assert (tmp_path / "token2wav/hift.pt").exists()


def test_a_real_token2wav_is_never_written_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "token2wav").mkdir()
    (tmp_path / "token2wav/flow.yaml").write_text("flow: real")
    assert synthetic.main([str(tmp_path), "--size", "tiny"]) == 1
    assert "not synthetic" in caplog.text
    assert contents(tmp_path) == {"token2wav/flow.yaml": b"flow: real"}


@pytest.mark.parametrize("size", ["tiny", "full"])
def test_flow_yaml_says_the_sizes_that_the_weights_have(size: str, tmp_path: Path) -> None:
    flow, _ = synthetic.SIZES[size]
    (tmp_path / "flow.yaml").write_text(synthetic.flow_yaml(flow))
    assert load_flow_config(tmp_path / "flow.yaml") == flow


def spoken(model: Path, codes: torch.Tensor) -> torch.Tensor:
    random = torch.Generator().manual_seed(0)
    token2wav = Token2Wav.from_folder(model / "token2wav")
    voice = token2wav.open_voice(
        VoiceFeatures(
            prompt_tokens=torch.randint(0, 6561, (20,), generator=random),
            prompt_mel=torch.randn(40, 80, generator=random) * 2 - 4,
            speaker=torch.randn(192, generator=random),
        )
    )
    samples, _ = token2wav.step(codes[None], [token2wav.start(voice, seed=0)], last=True)
    return samples[0]


def test_the_noise_can_be_heard_and_has_a_pitch(tiny: Path) -> None:
    codes = torch.randint(0, 6561, (30,), generator=torch.Generator().manual_seed(0))
    samples = spoken(tiny, codes)
    assert samples.shape == (30 * SAMPLES_PER_TOKEN,)
    assert torch.isfinite(samples).all()
    assert 0.02 < samples.square().mean().sqrt() < 0.3
    assert (samples.abs() > 0.98).float().mean() < 0.01
    vocoder = Token2Wav.from_folder(tiny / "token2wav").vocoder
    pitch_hz = vocoder.f0(torch.randn(1, 80, 200, generator=torch.Generator().manual_seed(0)))
    assert (pitch_hz > 10).float().mean() > 0.95
    assert 80 < pitch_hz.median() < 300


def test_other_tokens_sound_otherwise(tiny: Path) -> None:
    assert not torch.allclose(spoken(tiny, torch.arange(10)), spoken(tiny, torch.arange(10) + 100), atol=0.05)


@pytest.mark.parametrize("frames", [1, 4, 5, 6, 7, 8, 299, 300, 3000])
def test_the_tokenizer_stand_in_keeps_the_real_ones_contract(tiny: Path, frames: int) -> None:
    session = onnxruntime.InferenceSession(tiny / "token2wav/speech_tokenizer_v2_25hz.onnx")
    log_mel = np.random.default_rng(0).standard_normal((1, 128, frames), dtype=np.float32)
    feats, length = (given.name for given in session.get_inputs())
    (tokens,) = session.run(None, {feats: log_mel, length: np.array([frames], dtype=np.int32)})
    assert tokens.shape == (1, ceil(ceil(frames / 2) / 2))
    assert tokens.dtype.kind == "i"
    assert tokens.min() >= 0
    assert tokens.max() < 6561
    assert frames < 100 or len(np.unique(tokens)) > tokens.size / 4, "it hears something"


def test_the_tokenizer_stand_in_hears_nothing_after_the_length_it_is_given(tiny: Path) -> None:
    session = onnxruntime.InferenceSession(tiny / "token2wav/speech_tokenizer_v2_25hz.onnx")
    log_mel = np.random.default_rng(0).standard_normal((1, 128, 100), dtype=np.float32)
    feats, length = (given.name for given in session.get_inputs())
    whole, short = ({feats: sound, length: np.array([60], dtype=np.int32)} for sound in (log_mel, log_mel[..., :60]))
    np.testing.assert_array_equal(session.run(None, whole)[0], session.run(None, short)[0])


@pytest.mark.parametrize(("batch", "frames"), [(1, 4), (2, 300), (1, 3000)])
def test_the_speaker_stand_in_keeps_the_real_ones_contract(tiny: Path, batch: int, frames: int) -> None:
    session = onnxruntime.InferenceSession(tiny / "token2wav/campplus.onnx")
    sound = np.random.default_rng(0).standard_normal((batch, frames, 80), dtype=np.float32)
    (name,) = (given.name for given in session.get_inputs())
    (vectors,) = session.run(None, {name: sound})
    (louder,) = session.run(None, {name: sound * 2})
    assert vectors.shape == (batch, 192)
    assert vectors.dtype == np.float32
    assert not np.allclose(vectors, louder)


def test_the_voices_recording_is_three_seconds_of_vowels() -> None:
    with wave.open(io.BytesIO(vowel_recording(3.0))) as recording:
        assert recording.getparams()[:4] == (1, 2, SAMPLE_RATE_HZ, 3 * SAMPLE_RATE_HZ)
        samples = np.frombuffer(recording.readframes(recording.getnframes()), "<i2") / 32768
    assert 0.05 < np.sqrt(np.mean(samples**2)) < 0.3
    assert np.abs(samples).max() < 0.6
    # a voice repeats itself after one period of its pitch (some 120 to 165 Hz), and not after half of one
    middle = samples[SAMPLE_RATE_HZ // 10 : SAMPLE_RATE_HZ // 5]
    repeats = np.correlate(middle, middle, "full")[len(middle) - 1 :] / np.sum(middle**2)
    period = 100 + int(np.argmax(repeats[100:300]))
    assert 120 < SAMPLE_RATE_HZ / period < 165
    assert repeats[period] > 0.7


def test_help_says_that_the_voice_is_noise(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        synthetic.main(["--help"])
    assert "its voice is noise" in capsys.readouterr().out
