"""Float samples to 16-bit PCM, the one conversion that every container shares."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def pcm16(samples: NDArray[np.float32]) -> NDArray[np.int16]:
    """Samples, any shape -> little-endian int16: clipped to [-1, 1], times 32767, truncated toward zero.

    Infinity is clipped like every other number; NaN has no place on the scale, and the cast would make it anything.
    """
    assert not np.isnan(samples).any(), "the scheduler ends a stream whose samples are not finite before they are heard"
    return (np.clip(samples, -1.0, 1.0) * np.float32(32767)).astype("<i2")
