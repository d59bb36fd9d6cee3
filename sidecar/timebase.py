"""The rates of the speech path and every conversion between them.

1 speech token = 2 mel frames = 960 samples = 40 ms (token2wav: 25 Hz tokens, 50 Hz mel, 24 kHz sound).
"""

TOKEN_RATE_HZ = 25
FRAME_RATE_HZ = 50
SAMPLE_RATE_HZ = 24_000

FRAMES_PER_TOKEN = FRAME_RATE_HZ // TOKEN_RATE_HZ
SAMPLES_PER_FRAME = SAMPLE_RATE_HZ // FRAME_RATE_HZ
SAMPLES_PER_TOKEN = FRAMES_PER_TOKEN * SAMPLES_PER_FRAME

#: The rate at which the language model and the voice's tokenizer hear.
INPUT_RATE_HZ = 16_000


def tokens_to_frames(tokens: int) -> int:
    return tokens * FRAMES_PER_TOKEN


def frames_to_samples(frames: int) -> int:
    return frames * SAMPLES_PER_FRAME


def tokens_to_samples(tokens: int) -> int:
    return tokens * SAMPLES_PER_TOKEN


def samples_to_seconds(samples: int, sample_rate_hz: int = SAMPLE_RATE_HZ) -> float:
    return samples / sample_rate_hz


def tokens_to_seconds(tokens: int) -> float:
    return tokens / TOKEN_RATE_HZ
