"""Uploaded bytes to samples: formats, bounds, and that broken bytes raise one of two errors."""

from __future__ import annotations

import io
import math
import time
import wave
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
import torch
from golden_folders import copies
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import load_file

from sidecar.audio import decode
from sidecar.audio.decode import Recording, decode_recording, to_mono16k, wav16k_bytes
from sidecar.audio.pcm import pcm16
from sidecar.audio.resample import resample
from sidecar.errors import UnsupportedMedia, UnusableAudio
from sidecar.voices.mel import flow_mel
from sidecar.voices.tokenizer import log_mel


def tone(seconds: float, rate_hz: int, hz: float = 440.0) -> NDArray[np.float32]:
    return (0.3 * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate_hz)) / rate_hz)).astype(np.float32)


def encoded(samples: NDArray[np.float32], rate_hz: int, container: str, coding: str) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples.T, rate_hz, format=container, subtype=coding)
    return file.getvalue()


def encoded_by_ffmpeg(samples: NDArray[np.float32], container: str, codec: str) -> bytes:
    """Mono samples at 48 kHz, as a browser's recorder would write them."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream(codec, rate=48_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(samples[None], format="flt", layout="mono")
        frame.sample_rate = 48_000
        size = stream.codec_context.frame_size or 960
        pieces = av.AudioResampler(format=stream.format, layout="mono", rate=48_000, frame_size=size)
        for part in [*pieces.resample(frame), *pieces.resample(None), None]:
            for packet in stream.encode(part):
                output.mux(packet)
    return file.getvalue()


STEREO = np.stack([tone(1.5, 48_000), tone(1.5, 48_000, 1000.0) / 2])

FILES = {
    "wav": encoded(STEREO, 48_000, "WAV", "PCM_16"),
    "wav-24-bit": encoded(STEREO, 48_000, "WAV", "PCM_24"),
    "wav-float": encoded(STEREO, 48_000, "WAV", "FLOAT"),
    "wav-extensible": encoded(STEREO, 48_000, "WAVEX", "PCM_16"),
    "flac": encoded(STEREO, 48_000, "FLAC", "PCM_16"),
    "ogg-vorbis": encoded(STEREO, 48_000, "OGG", "VORBIS"),
    "ogg-opus": encoded(STEREO, 48_000, "OGG", "OPUS"),
    "mp3": encoded(STEREO, 48_000, "MP3", "MPEG_LAYER_III"),
    "m4a": encoded_by_ffmpeg(STEREO[0], "mp4", "aac"),
    "webm": encoded_by_ffmpeg(STEREO[0], "webm", "libopus"),
    "aac": encoded_by_ffmpeg(STEREO[0], "adts", "aac"),
}


def pitch_hz(samples: NDArray[np.float32], rate_hz: int) -> float:
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return float(spectrum.argmax() * rate_hz / len(samples))


@pytest.mark.parametrize("kind", FILES)
def test_every_format_decodes_to_the_sound_that_went_in(kind: str) -> None:
    recording = decode_recording(FILES[kind])
    assert recording.sample_rate_hz == 48_000
    assert recording.samples.dtype == np.float32
    assert recording.seconds == pytest.approx(1.5, abs=0.06)
    assert pitch_hz(recording.samples[0, 2000:60_000], 48_000) == pytest.approx(440, abs=1)
    assert recording.samples[0, 4000:60_000].std() == pytest.approx(0.3 / math.sqrt(2), abs=0.01)


@pytest.mark.parametrize("rate_hz", [8_000, 11_025, 22_050, 32_000, 44_100, 96_000, 44_099])
def test_any_rate_comes_out_at_16_khz_in_the_same_pitch(rate_hz: int) -> None:
    recording = decode_recording(encoded(tone(1.0, rate_hz)[None], rate_hz, "WAV", "PCM_16"))
    mono = to_mono16k(recording)
    assert len(mono) == math.ceil(recording.samples.shape[-1] * 16_000 / rate_hz)
    assert pitch_hz(mono, 16_000) == pytest.approx(440, abs=1)


def test_only_channel_0_is_heard() -> None:
    assert np.array_equal(to_mono16k(Recording(STEREO, 48_000)), to_mono16k(Recording(STEREO[:1], 48_000)))


def test_sixteen_bit_sound_at_16_khz_comes_out_as_it_went_in() -> None:
    every_value = np.arange(-32768, 32768, dtype=np.int16)
    file = io.BytesIO()
    soundfile.write(file, every_value, 16_000, format="WAV", subtype="PCM_16")
    with wave.open(io.BytesIO(wav16k_bytes(to_mono16k(decode_recording(file.getvalue()))))) as out:
        assert (out.getframerate(), out.getnchannels(), out.getsampwidth()) == (16_000, 1, 2)
        assert np.array_equal(np.frombuffer(out.readframes(1 << 20), "<i2"), every_value)


def test_sound_above_full_scale_is_clipped_and_does_not_wrap_around() -> None:
    with wave.open(io.BytesIO(wav16k_bytes(np.array([2.0, -2.0, 1.0], np.float32)))) as out:
        assert np.frombuffer(out.readframes(3), "<i2").tolist() == [32767, -32768, 32767]


def test_pcm_is_clipped_and_truncated_toward_zero() -> None:
    samples = np.array([1.3, -1.3, 0.5, -0.5, 2e-5, -2e-5], np.float32)
    assert pcm16(samples).tolist() == [32767, -32767, 16383, -16383, 0, 0]


def test_a_streamed_wav_that_does_not_know_its_length_is_taken() -> None:
    data = bytearray(FILES["wav"])
    data[4:8] = data[40:44] = b"\xff" * 4
    assert decode_recording(bytes(data)).samples.shape == (2, 72_000)


def test_a_wav_that_is_cut_off_is_used_as_far_as_it_goes() -> None:
    assert decode_recording(FILES["wav"][: 44 + 4 * 1000]).samples.shape == (2, 1000)


@pytest.mark.parametrize(
    "data",
    [
        b"hello, this is text",
        b"<html></html>",
        b"\x89PNG\r\n\x1a\n" + bytes(100),
        b"RIFF\x64\0\0\0WEBPVP8 " + bytes(84),
        b"#EXTM3U\nfile:///etc/passwd\n",
        b"ffconcat version 1.0\nfile /etc/passwd\n",
    ],
)
def test_what_is_no_recording_is_unsupported(data: bytes) -> None:
    with pytest.raises(UnsupportedMedia, match="send wav, flac"):
        decode_recording(data)


def test_a_file_without_a_byte_is_unusable() -> None:
    with pytest.raises(UnusableAudio, match="0 bytes came"):
        decode_recording(b"")


@pytest.mark.parametrize("data", [FILES["wav"][:44], FILES["flac"][:60], FILES["m4a"][:300], b"OggS" + bytes(500)])
def test_a_recording_that_decodes_to_nothing_is_unusable(data: bytes) -> None:
    with pytest.raises(UnusableAudio, match="no sound can be decoded"):
        decode_recording(data)


@pytest.mark.parametrize("kind", ["wav", "flac", "ogg-opus", "mp3", "m4a", "webm"])
def test_a_recording_over_the_limit_is_refused_with_the_limit(kind: str) -> None:
    with pytest.raises(UnusableAudio, match=r"longer than the 1\.2 s"):
        decode_recording(FILES[kind], max_seconds=1.2)


def test_a_recording_as_long_as_the_limit_is_taken() -> None:
    assert decode_recording(FILES["wav"], max_seconds=1.5).seconds == 1.5


def test_hours_of_silence_in_a_small_file_are_refused_before_they_are_all_decoded() -> None:
    bomb = encoded(np.zeros((8, 3 * 1_000_000), np.float32), 8_000, "FLAC", "PCM_16")
    assert len(bomb) < 200_000
    started = time.perf_counter()
    with pytest.raises(UnusableAudio, match="longer than the 5 s"):
        decode_recording(bomb, max_seconds=5)
    assert time.perf_counter() - started < 1.0


def test_more_numbers_than_memory_is_meant_for_are_refused() -> None:
    with pytest.raises(UnusableAudio, match="fewer channels or a lower rate"):
        decode_recording(FILES["flac"], max_values=100_000)


@pytest.mark.parametrize("rate_hz", [1, 900, 400_000, 2_000_000_000])
def test_rates_that_no_recorder_has_are_refused(rate_hz: int) -> None:
    data = bytearray(FILES["wav"])
    data[24:28] = rate_hz.to_bytes(4, "little")
    with pytest.raises(UnusableAudio, match="1000 to 384000 are taken"):
        decode_recording(bytes(data))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30, -1e30])
def test_samples_that_are_not_finite_are_refused(value: float) -> None:
    samples = tone(0.5, 16_000)
    samples[77] = value
    with pytest.raises(UnusableAudio, match="not finite"):
        decode_recording(encoded(samples[None], 16_000, "WAV", "FLOAT"))


def test_the_loudest_sound_that_is_taken_has_a_finite_spectrum() -> None:
    samples = np.sign(tone(1.0, 48_000)) * np.float32(decode.LOUDEST)
    recording = decode_recording(encoded(samples[None], 48_000, "WAV", "FLOAT"))
    at_24k = resample(recording.samples[0], 48_000, 24_000)
    assert log_mel(torch.from_numpy(to_mono16k(recording))).isfinite().all()
    assert flow_mel(torch.from_numpy(at_24k)).isfinite().all()


def decodes_or_is_refused(data: bytes) -> None:
    try:
        recording = decode_recording(data, max_seconds=20)
    except (UnsupportedMedia, UnusableAudio):
        return
    assert recording.samples.ndim == 2 and recording.samples.size > 0
    assert np.isfinite(recording.samples).all()


@settings(max_examples=150, deadline=None)
@given(
    start=st.sampled_from(
        [
            b"",
            b"RIFF\0\0\0\0WAVEfmt ",
            b"fLaC",
            b"OggS",
            b"ID3",
            b"\xff\xfb",
            b"\xff\xf1",
            b"FORM",
            b"\0\0\0\x1cftypM4A ",
            b"\x1aE\xdf\xa3",
        ]
    ),
    rest=st.binary(max_size=600),
)
def test_random_bytes_decode_or_are_refused(start: bytes, rest: bytes) -> None:
    decodes_or_is_refused(start + rest)


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from(sorted(FILES)),
    kept=st.floats(0, 1),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=12),
    at_the_start=st.booleans(),
)
def test_damaged_files_decode_or_are_refused(
    kind: str, kept: float, changes: list[tuple[float, int]], at_the_start: bool
) -> None:
    data = bytearray(FILES[kind])
    for place, value in changes:
        data[int(place * (min(200, len(data)) if at_the_start else len(data)))] = value
    decodes_or_is_refused(bytes(data[: int(kept * len(data))]))


@pytest.mark.parametrize("folder", copies("frontend"))
def test_resampled_sound_is_the_recorded_one(folder: Path) -> None:
    waves = load_file(folder / "waveforms.safetensors")
    for file, name in (("speech_source.wav", "wave.speech_3s"), ("stereo.wav", "wave.stereo_first_channel")):
        ours = to_mono16k(decode_recording((folder / file).read_bytes()))
        np.testing.assert_allclose(ours, waves[name], atol=2e-6, rtol=0)


@pytest.mark.parametrize("from_hz", [8_000, 44_100, 44_099, 48_000])
@pytest.mark.parametrize("to_hz", [16_000, 24_000])
def test_the_resampler_is_the_windowed_sinc_written_out(from_hz: int, to_hz: int) -> None:
    x = np.random.default_rng(0).standard_normal(700).astype(np.float32)
    ours = resample(x, from_hz, to_hz)
    assert len(ours) == math.ceil(700 * to_hz / from_hz)
    for j in (0, 1, 50, len(ours) // 2, len(ours) - 1):
        cutoff = 0.99 * min(1.0, to_hz / from_hz)
        u = np.clip((np.arange(700) - j * from_hz / to_hz) * cutoff, -6, 6)
        assert ours[j] == pytest.approx(np.dot(x, np.sinc(u) * np.cos(np.pi * u / 12) ** 2 * cutoff), abs=2e-6)


def test_every_row_is_resampled_on_its_own() -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 1000)).astype(np.float32)
    together = resample(x, 44_100, 16_000)
    assert together.shape == (2, 3, 363)
    np.testing.assert_allclose(together[1, 2], resample(x[1, 2], 44_100, 16_000), atol=1e-6, rtol=0)
