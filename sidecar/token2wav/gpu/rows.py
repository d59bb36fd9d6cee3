"""What the streams of one step are, as its kernels read it: a line of integers for each, in one tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from sidecar.timebase import FRAMES_PER_TOKEN
from sidecar.token2wav.noise import signed_seed
from sidecar.token2wav.upsample_encoder import LOOKAHEAD_TOKENS


class Field(IntEnum):
    """Columns of a line; the tokens stand behind them."""

    SLOT = 0
    NEW_TOKENS = 1  # 0: a line that only fills the batch up; nothing is read or written for it
    LAST = 2  # 1 where the stream ends with this chunk, so that nothing is looked ahead at
    PROMPT_TOKENS = 3
    TOKENS_DONE = 4  # of the stream's own, before this step
    HELD_FRAMES = 5  # that the vocoder sees again in front of the new ones
    SEED = 6
    VOICE_FRAMES = 7  # address of the voice's estimator keys and values (K, blocks, 2, H, P, 2D)
    VOICE_TOKENS = 8  # of its encoder's, before the upsampling (blocks, H, P / 2, 2D)
    VOICE_UPSAMPLED = 9  # and after it (up blocks, H, P, 2D)


FIELDS = 16  # more than there are, so that lines begin at even addresses

#: What kernels call the sizes of a step. Left to itself, Triton compiles anew for a size of 1 and for multiples of 16;
#: nothing lies where it does because of these, so one compiled kernel serves all shapes.
STEP_SIZES = ("batch", "count", "control_stride", "frames", "line", "lines", "rows", "steps", "tokens")


@dataclass(frozen=True)
class Row:
    """One stream's part in a step, on the host."""

    slot: int
    tokens: Sequence[int]  # new ones and, unless `last`, 3 of look-ahead
    last: bool
    prompt_tokens: int
    tokens_done: int
    held_frames: int
    seed: int
    voice_frames: int
    voice_tokens: int
    voice_upsampled: int

    @property
    def new_tokens(self) -> int:
        return len(self.tokens) - (0 if self.last else LOOKAHEAD_TOKENS)


@dataclass(frozen=True)
class Rows:
    """B lines on the device, for chunks of at most N new tokens."""

    control: Tensor  # (B, FIELDS + N + 3) int64

    @property
    def batch(self) -> int:
        return self.control.shape[0]

    @property
    def tokens(self) -> int:
        """N, room for so many new tokens in each line."""
        return self.control.shape[1] - FIELDS - LOOKAHEAD_TOKENS

    @property
    def frames(self) -> int:
        """T = 2 N."""
        return self.tokens * FRAMES_PER_TOKEN

    @property
    def token_ids(self) -> Tensor:
        """(B, N + 3): new tokens, look-ahead, zeros."""
        return self.control[:, FIELDS:]

    def column(self, field: Field) -> Tensor:
        """(B,) int64, a view."""
        return self.control[:, field]

    @staticmethod
    def empty(batch: int, tokens: int, device: torch.device | str, *, pinned: bool = False) -> Rows:
        width = FIELDS + tokens + LOOKAHEAD_TOKENS
        return Rows(torch.zeros(batch, width, dtype=torch.int64, device=device, pin_memory=pinned))

    def write(self, rows: Sequence[Row]) -> None:
        """Fill the lines, of a tensor on the CPU; those left over become empty."""
        width = self.control.shape[1]
        lines = [_line(row, width) for row in rows]
        lines += [[0] * width] * (self.batch - len(rows))
        self.control.copy_(torch.tensor(lines, dtype=torch.int64))


def _line(row: Row, width: int) -> list[int]:
    fields = [
        row.slot, row.new_tokens, int(row.last), row.prompt_tokens, row.tokens_done, row.held_frames,
        signed_seed(row.seed), row.voice_frames, row.voice_tokens, row.voice_upsampled,
    ]  # fmt: skip
    assert len(row.tokens) <= width - FIELDS, f"a chunk of {len(row.tokens)} tokens for lines of {width - FIELDS}"
    line = [*fields, *[0] * (FIELDS - len(fields)), *row.tokens]
    return line + [0] * (width - len(line))
