"""Uploaded bytes -> float samples at a named rate, within bounds whatever the bytes are."""

from __future__ import annotations

import io
import wave
from collections.abc import Iterator
from dataclasses import dataclass

import av
import numpy as np
import soundfile
from numpy.typing import NDArray

from sidecar.audio.resample import resample
from sidecar.errors import RecordingTooLong, UnsupportedMedia, UnusableAudio
from sidecar.timebase import INPUT_RATE_HZ

#: Decoded numbers, all channels together (512 MiB as float32): 23 minutes of 48 kHz stereo. A few kilobytes of FLAC or
#: Opus can hold hours of silence in 255 channels; nothing that people record comes near.
MAX_VALUES = 1 << 27
LOWEST_RATE_HZ, HIGHEST_RATE_HZ = 1_000, 384_000
#: Full scale is 1. From some ten times this, the spectrum that the networks hear by overflows float32.
LOUDEST = 1e15

#: First bytes -> FFmpeg's name of the container. What is in no line here is refused: left to guess, FFmpeg also takes
#: playlists, which name other files and addresses to read.
_CONTAINERS = (
    (8, b"WAVE", "wav"),  # in a RIFF, RIFX or RF64 file; other RIFF files are pictures and films
    (0, b"fLaC", "flac"),
    (0, b"OggS", "ogg"),
    (0, b"ID3", "mp3"),
    (0, b"FORM", "aiff"),
    (4, b"ftyp", "mov"),
    (0, b"\x1aE\xdf\xa3", "matroska"),
)
_BLOCK_VALUES = 1 << 18
#: What libsndfile says of a FLAC file that was written as a stream. It then reads whole blocks and fails at the end.
_UNKNOWN_LENGTH = (1 << 63) - 1
_DECODER_ERRORS = (soundfile.SoundFileError, av.FFmpegError, RuntimeError, ValueError, OSError, EOFError)


@dataclass(frozen=True)
class Recording:
    """Decoded sound: samples (channels, S) float32, 16-bit PCM as value / 32768."""

    samples: NDArray[np.float32]
    sample_rate_hz: int

    @property
    def seconds(self) -> float:
        return int(self.samples.shape[-1]) / self.sample_rate_hz


def decode_recording(data: bytes, *, max_seconds: float = 300.0, max_values: int = MAX_VALUES) -> Recording:
    """A wav, flac, ogg (Vorbis, Opus), mp3 file, and what browsers record (webm, mp4): any rate, any channels.

    A file that is cut off is used as far as it goes.

    Args:
        max_values: samples of all channels together.

    Raises:
        UnsupportedMedia: the bytes are none of these.
        RecordingTooLong: longer than `max_seconds`.
        UnusableAudio: damaged, empty, not finite, or too much to hold.
    """
    if not data:
        raise UnusableAudio("the recording is empty: 0 bytes came; check the file and send it again")
    container = container_of(data)
    if container is None:
        raise UnsupportedMedia("the recording is in no format known here; send wav, flac, ogg, opus, mp3, webm or m4a")
    decoders = (_soundfile_blocks(data), _ffmpeg_blocks(data, container))
    collected = (_collect(blocks, max_seconds, max_values) for blocks in decoders)
    recording = next((one for one in collected if one is not None), None)
    if recording is None:
        raise UnusableAudio(
            f"the recording looks like {container} but no sound can be decoded from it; send it again, or as wav"
        )
    _refuse_not_finite(recording.samples)
    return recording


def to_mono16k(recording: Recording) -> NDArray[np.float32]:
    """Channel 0 at 16 kHz, (S,): what the language model hears. Channels are not averaged."""
    return resample(recording.samples[0], recording.sample_rate_hz, INPUT_RATE_HZ)


def wav16k_bytes(samples: NDArray[np.float32]) -> bytes:
    """Samples (S,) at 16 kHz -> a mono 16-bit wav file; a 16 kHz 16-bit recording comes out as it went in."""
    pcm = np.clip(np.rint(samples * np.float32(32768)), -32768, 32767).astype("<i2")
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(INPUT_RATE_HZ)
        writer.writeframes(pcm.tobytes())
    return file.getvalue()


def container_of(data: bytes) -> str | None:
    """FFmpeg's name of the container, told by the first bytes; None for what is in no format known here."""
    known = next((name for offset, magic, name in _CONTAINERS if data[offset : offset + len(magic)] == magic), None)
    if known is None and len(data) > 1 and data[0] == 0xFF and data[1] & 0xE0 == 0xE0:  # MPEG audio, no header
        return "mp3" if data[1] & 0x06 else "aac"
    return known


def _collect(
    blocks: Iterator[tuple[NDArray[np.float32], int]], max_seconds: float, max_values: int
) -> Recording | None:
    """Blocks (channels, S) with their rate, joined; None where the decoder gave nothing."""
    taken: list[NDArray[np.float32]] = []
    values, rate_hz = 0, 0
    for block, block_rate_hz in _until_broken(blocks):
        if taken and (block_rate_hz != rate_hz or block.shape[0] != taken[0].shape[0]):
            raise UnusableAudio("the recording changes its rate or its channels on the way; send one piece")
        rate_hz, values = block_rate_hz, values + block.size
        taken.append(block)
        _refuse_too_much(values, max_values, block.shape[0], rate_hz, max_seconds)
    return Recording(np.concatenate(taken, axis=-1), rate_hz) if values else None


def _refuse_too_much(values: int, max_values: int, channels: int, rate_hz: int, max_seconds: float) -> None:
    if not LOWEST_RATE_HZ <= rate_hz <= HIGHEST_RATE_HZ:
        raise UnusableAudio(
            f"the recording says {rate_hz} samples a second; {LOWEST_RATE_HZ} to {HIGHEST_RATE_HZ} are taken"
        )
    if values > max_seconds * rate_hz * channels:
        raise RecordingTooLong(f"the recording is longer than the {max_seconds:g} s that are taken; send a shorter one")
    if values > max_values:
        raise UnusableAudio(
            f"the recording decodes to more than {max_values} numbers in {channels} channels; "
            "send fewer channels or a lower rate"
        )


def _refuse_not_finite(samples: NDArray[np.float32]) -> None:
    loudest = max(samples.max(), -samples.min())  # NaN if any sample is
    if not np.isfinite(loudest):
        raise UnusableAudio("the recording holds samples that are not finite (NaN or infinity); export it again")
    if loudest > LOUDEST:
        raise UnusableAudio(
            f"the recording reaches {loudest:.0e}, whose spectrum is not finite; scale its samples to -1 ... 1"
        )


def _until_broken(blocks: Iterator[tuple[NDArray[np.float32], int]]) -> Iterator[tuple[NDArray[np.float32], int]]:
    """The blocks up to the first that the decoder cannot read."""
    try:
        yield from blocks
    except _DECODER_ERRORS:
        return


def _soundfile_blocks(data: bytes) -> Iterator[tuple[NDArray[np.float32], int]]:
    with soundfile.SoundFile(io.BytesIO(data)) as file:
        if file.frames == _UNKNOWN_LENGTH:
            return
        frames = max(_BLOCK_VALUES // file.channels, 1)
        while len(block := file.read(frames, dtype="float32", always_2d=True)):
            yield np.ascontiguousarray(block.T), file.samplerate


def _ffmpeg_blocks(data: bytes, container: str) -> Iterator[tuple[NDArray[np.float32], int]]:
    with av.open(io.BytesIO(data), format=container, metadata_errors="ignore") as file:
        if not file.streams.audio:
            return
        to_float = av.AudioResampler(format="fltp")
        for frame in file.decode(audio=0):
            for part in to_float.resample(frame):
                yield part.to_ndarray(), part.sample_rate
