"""Float samples to 16-bit PCM, the one conversion that every container shares."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def pcm16(samples: NDArray[np.float32]) -> NDArray[np.int16]:
    """Samples in [-1, 1], any shape -> little-endian int16: clipped, times 32767, truncated toward zero."""
    return (np.clip(samples, -1.0, 1.0) * np.float32(32767)).astype("<i2")
