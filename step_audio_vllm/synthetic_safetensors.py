"""Arrays as the bytes of a safetensors file in bfloat16, without PyTorch: a start-up has no two seconds for its import.

The format: 8 bytes with the header's length, the header (JSON: type, shape and place of each tensor), then the tensors.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: The tensors begin at a multiple of this, so that a reader may map the file into memory.
_ALIGNMENT_BYTES = 8


def bfloat16_file(tensors: Mapping[str, NDArray[np.float32]]) -> bytes:
    """The contents of a .safetensors file with every tensor rounded to bfloat16; the same tensors, the same bytes."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    parts: list[bytes] = []
    start = 0
    for name in sorted(tensors):
        parts.append(bfloat16_bytes(tensors[name]))
        end = start + len(parts[-1])
        header[name] = {"dtype": "BF16", "shape": list(tensors[name].shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT_BYTES)
    return b"".join([struct.pack("<Q", len(text)), text, *parts])


def bfloat16_bytes(values: NDArray[np.float32]) -> bytes:
    """The upper half of each float32, rounded to the nearest, ties to even; finite values only."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return rounded.astype("<u2").tobytes()
