"""What token2wav takes of a GPU's memory, counted before anything is loaded, and whether that fits.

The sizes are the released model's, so that the launcher, which sees no tensor, can share a GPU out between it and
vLLM. Who has the model's own tensors says so (`of_model`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from sidecar.errors import SettingsError
from sidecar.settings import Settings
from sidecar.timebase import FRAMES_PER_TOKEN

#: Numbers in the networks' weights. The vocoder's stay in float32.
FLOW_NUMBERS = 155_802_352
VOCODER_NUMBERS = 20_806_557

#: Of the released flow, as its flow.yaml has them.
STEPS, HEADS, HEAD_WIDTH, MEL_BINS = 10, 8, 64, 80
ESTIMATOR_BLOCKS, HIDDEN = 16, 512
ENCODER_BLOCKS, UPSAMPLED_BLOCKS, CHANNELS = 6, 4, 512
#: The two halves of classifier-free guidance keep a past each.
GUIDANCE = 2
#: Beside each other in one column of a cache.
KEY_AND_VALUE = 2

#: What of its past a stream still attends to.
PAST_FRAMES, PAST_TOKENS = 100, 750
#: By how much the last chunk may be longer than the others.
LAST_CHUNK_EXTRA_TOKENS = 2
#: Held back by the vocoder for the next seam: mel, float32; pitches, float32; samples, float32; the phase and a flag.
HELD_BYTES = 4 * (16 * MEL_BINS + 11 + 3840) + 8 + 8

#: Opened voices grow with their recording: the authors' default one has 9.1 s, the longest allowed 30 s.
DEFAULT_VOICE_TOKENS, LONGEST_VOICE_TOKENS = 227, 750

#: While a voice is opened, its keys and values are there by flow steps, put together, and cut to what stays.
COPIES_WHILE_OPENED = 3

#: What CUDA keeps for a process that computes.
CONTEXT_BYTES = 500_000_000
#: At 16 bits. On an H100, the 42 graphs of steps of up to 32 streams took 2.4 to 2.5 GB with what passes between their
#: kernels, and the weights in the order that the kernels read them 0.24 GB.
GRAPHS_BYTES = 2_750_000_000


@dataclass(frozen=True, kw_only=True)
class Token2WavMemory:
    """Bytes on the GPU, part by part.

    `least_voices` of the `voices` are needed with no --voice-memory-mb too.
    """

    weights: int
    streams: int
    bytes_per_stream: int
    voices: int
    least_voices: int
    workspaces: int

    @property
    def without_streams(self) -> int:
        return self.weights + self.voices + self.workspaces

    @property
    def total(self) -> int:
        return self.without_streams + self.streams * self.bytes_per_stream

    @property
    def at_least(self) -> Token2WavMemory:
        """The same with --voice-memory-mb 0."""
        return replace(self, voices=self.least_voices)

    def of_model(self, *, weights: int, bytes_per_stream: int) -> Token2WavMemory:
        """The same for a model whose sizes are known: what was not counted grows as a stream does."""
        size = bytes_per_stream / self.bytes_per_stream
        return replace(
            self,
            weights=weights,
            bytes_per_stream=bytes_per_stream,
            voices=int(size * self.voices),
            least_voices=int(size * self.least_voices),
            workspaces=CONTEXT_BYTES + int(size * (self.workspaces - CONTEXT_BYTES)),
        )

    def most_streams(self, available_bytes: int, *, bytes_beside_each: int = 0) -> int:
        """How many streams so much memory has room for, where each needs some outside of token2wav too."""
        return max(0, (available_bytes - self.without_streams) // (self.bytes_per_stream + bytes_beside_each))

    def words(self) -> str:
        """One line for a log."""
        return (
            f"token2wav: weights {gigabytes(self.weights)}, {self.streams} streams x "
            f"{self.bytes_per_stream / 1e6:.0f} MB = {gigabytes(self.streams * self.bytes_per_stream)}, "
            f"voices {gigabytes(self.voices)}, CUDA graphs and workspaces {gigabytes(self.workspaces)}: "
            f"{gigabytes(self.total)} in all"
        )

    def refuse_too_little(self, available_bytes: int, what: str = "is free on the GPU") -> None:
        """
        Args:
            what: follows the number of gigabytes in the sentence.

        Raises:
            SettingsError: it does not fit; says how many streams would.
        """
        if self.total <= available_bytes:
            return
        fit = what_fits(self.most_streams(available_bytes), self.at_least.most_streams(available_bytes))
        raise SettingsError(
            f"--max-batch-size {self.streams} needs {gigabytes(self.streams * self.bytes_per_stream)} for its streams, "
            f"and token2wav {gigabytes(self.total)} in all; {gigabytes(available_bytes)} {what}; {fit}"
        )


def what_fits(streams: int, streams_at_least: int) -> str:
    """The end of a refusal: how many streams, as it is and with --voice-memory-mb 0."""
    if not streams_at_least:
        return "not one stream fits, not even with --voice-memory-mb 0"
    fit = f"at most {streams} fit" if streams else "not one stream fits"
    return fit if streams == streams_at_least else f"{fit}, but {streams_at_least} with --voice-memory-mb 0"


def token2wav_memory(settings: Settings) -> Token2WavMemory:
    """What the released model takes on a GPU with these settings."""
    item_bytes = 4 if settings.precision == "float32" else 2
    longest = voice_bytes(LONGEST_VOICE_TOKENS, item_bytes)
    default = voice_bytes(DEFAULT_VOICE_TOKENS, item_bytes) if settings.voice is None else longest
    return Token2WavMemory(
        weights=FLOW_NUMBERS * item_bytes + VOCODER_NUMBERS * 4,
        streams=settings.slots,
        bytes_per_stream=stream_bytes(settings.stream.chunk_tokens + LAST_CHUNK_EXTRA_TOKENS, item_bytes),
        # the one opened last stays in any case
        voices=default + max(int(settings.voice_memory_mb * 1e6), longest),
        least_voices=default + longest,
        workspaces=CONTEXT_BYTES + GRAPHS_BYTES * item_bytes // 2 + COPIES_WHILE_OPENED * longest,
    )


def stream_bytes(most_tokens: int, item_bytes: int) -> int:
    """What a stream owns, for chunks of at most so many new tokens: rings of keys and values, pasts of convolutions.

    A ring has room for the window and for the longest chunk, which is written before it is read.
    """
    ring_tokens = PAST_TOKENS + most_tokens
    ring_frames = PAST_FRAMES + FRAMES_PER_TOKEN * most_tokens
    passes = STEPS * ESTIMATOR_BLOCKS * GUIDANCE
    numbers = passes * ring_frames * _column(HEADS)  # the estimator's keys and values
    numbers += passes * 2 * HIDDEN * 2  # two inputs of two causal convolutions
    numbers += (ENCODER_BLOCKS + UPSAMPLED_BLOCKS * FRAMES_PER_TOKEN) * ring_tokens * _column(HEADS)
    numbers += CHANNELS * 2 + CHANNELS * 4 + MEL_BINS  # pasts of look-ahead and upsampling, the speaker
    return numbers * item_bytes + HELD_BYTES


def voice_bytes(tokens: int, item_bytes: int) -> int:
    """What an opened voice with so many tokens of recording keeps for all streams that speak with it."""
    passes = STEPS * ESTIMATOR_BLOCKS * GUIDANCE
    columns = passes * FRAMES_PER_TOKEN + ENCODER_BLOCKS + UPSAMPLED_BLOCKS * FRAMES_PER_TOKEN
    return tokens * columns * _column(HEADS) * item_bytes


def gigabytes(number: int) -> str:
    return f"{number / 1e9:.1f} GB"


def _column(heads: int) -> int:
    return heads * HEAD_WIDTH * KEY_AND_VALUE
