"""Which of the past a stream still attends to.

The flow's two attention caches grow with every chunk: the estimator's by frames, the encoder's by tokens. A policy says
what stays after a call. Positions count from the start of the prompt; what is below the prompt's length is the voice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

PAST_FRAMES = 100  # 2 s, as the model's authors meant it
PAST_TOKENS = 750  # 30 s


class HistoryPolicy(Protocol):
    """Both methods take positions in the order they are stored and say what is stored after the call, as places in
    `[*cached, *new]`; nothing in this model depends on the order itself."""

    def frames_kept(self, cached: Sequence[int], new: Sequence[int], prompt_frames: int, /) -> list[int]: ...

    def tokens_kept(self, cached: Sequence[int], new: Sequence[int], prompt_tokens: int, /) -> list[int]: ...


@dataclass(frozen=True)
class RecentHistory:
    """The whole prompt and the newest of the stream, in time order: constant memory however long it speaks."""

    past_frames: int = PAST_FRAMES
    past_tokens: int = PAST_TOKENS

    def frames_kept(self, cached: Sequence[int], new: Sequence[int], prompt_frames: int) -> list[int]:
        return _prompt_and_newest([*cached, *new], prompt_frames, self.past_frames)

    def tokens_kept(self, cached: Sequence[int], new: Sequence[int], prompt_tokens: int) -> list[int]:
        return _prompt_and_newest([*cached, *new], prompt_tokens, self.past_tokens)


@dataclass(frozen=True)
class ReferenceHistory:
    """What the authors' code keeps; recordings of it need this.

    It puts each call's frames in front of the older ones and, once there are more than the prompt's and 100, keeps the
    first so many and the last 100 of that list. That drops first the middle of the prompt, then its beginning. It never
    drops a token from the encoder's cache.
    """

    past_frames: int = PAST_FRAMES

    def frames_kept(self, cached: Sequence[int], new: Sequence[int], prompt_frames: int) -> list[int]:
        places = [*range(len(cached), len(cached) + len(new)), *range(len(cached))]
        if len(places) <= prompt_frames + self.past_frames:
            return places
        return places[:prompt_frames] + places[-self.past_frames :]

    def tokens_kept(self, cached: Sequence[int], new: Sequence[int], _prompt_tokens: int, /) -> list[int]:
        return list(range(len(cached) + len(new)))


RECENT = RecentHistory()
REFERENCE = ReferenceHistory()


def gather(cached: Tensor, new: Tensor, places: Sequence[int]) -> Tensor:
    """The columns `places` of [cached, new] along axis -2, copied once."""
    border = cached.shape[-2]
    pieces = [
        cached.narrow(-2, start, stop - start) if start < border else new.narrow(-2, start - border, stop - start)
        for start, stop in _runs(places, border)
    ]
    return torch.cat(pieces, dim=-2) if pieces else cached.narrow(-2, 0, 0)


def _prompt_and_newest(positions: Sequence[int], prompt: int, newest: int) -> list[int]:
    oldest = max(positions, default=0) + 1 - newest
    return [place for place, position in enumerate(positions) if position < prompt or position >= oldest]


def _runs(places: Sequence[int], border: int) -> list[tuple[int, int]]:
    """Stretches of consecutive places as (start, stop), none across `border`. In numpy: the encoder's cache has some
    2,000 columns, and looking at each in Python takes 0.3 ms for every stream and chunk."""
    at = np.asarray(places, dtype=np.int64)
    first = (np.diff(at, prepend=-2) != 1) | (at == border)
    last = np.roll(first, -1)  # where another stretch follows, or none
    return list(zip(at[first].tolist(), (at[last] + 1).tolist(), strict=True))
