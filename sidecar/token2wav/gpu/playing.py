"""Where one stream stands, counted on the host: what its line of the next step says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sidecar.errors import SynthesisFailed
from sidecar.timebase import tokens_to_frames
from sidecar.token2wav.gpu.encoder import LONGEST_PROMPT_TOKENS
from sidecar.token2wav.gpu.rows import Row
from sidecar.token2wav.gpu.slots import HELD_FRAMES
from sidecar.token2wav.state import OpenedVoice


class Chunk(Protocol):
    """The tokens of one step. Unless `last`, they end with the look-ahead, which comes again in the next chunk."""

    @property
    def tokens(self) -> Sequence[int]: ...

    @property
    def new_tokens(self) -> int: ...

    @property
    def last(self) -> bool: ...


@dataclass
class Playing:
    """One stream in its slot. It holds its voice: as long as it is there, the voice's memory stays."""

    slot: int
    voice: OpenedVoice
    seed: int
    tokens_done: int = 0
    held_frames: int = 0

    @property
    def begun(self) -> bool:
        return self.tokens_done > 0

    def row(self, chunk: Chunk, *, vocab_size: int) -> Row:
        """
        Raises:
            SynthesisFailed: an id outside the vocabulary; a kernel would read beyond the embedding.
        """
        wrong = [token for token in chunk.tokens if not 0 <= token < vocab_size]
        if wrong:
            raise SynthesisFailed(
                f"speech token {wrong[0]} is outside 0 to {vocab_size - 1}; leave out padding and text tokens"
            )
        flow = self.voice.flow
        return Row(
            slot=self.slot,
            tokens=chunk.tokens,
            last=chunk.last,
            prompt_tokens=flow.prompt_tokens[0],
            tokens_done=self.tokens_done,
            held_frames=self.held_frames,
            seed=self.seed,
            voice_frames=flow.estimator.keys_values.data_ptr(),
            voice_tokens=flow.encoder.token_keys_values.data_ptr(),
            voice_upsampled=flow.encoder.frame_keys_values.data_ptr(),
        )

    def advance(self, new_tokens: int) -> None:
        self.tokens_done += new_tokens
        self.held_frames = min(HELD_FRAMES, self.held_frames + tokens_to_frames(new_tokens))


def check_voice(voice: OpenedVoice, dtype: torch.dtype, device: torch.device) -> None:
    """Kernels take the address of a voice's memory on trust."""
    flow = voice.flow
    assert len(flow.tokens_done) == 1, f"a voice is one row, not {len(flow.tokens_done)}"
    assert flow.tokens_done == flow.prompt_tokens, "a voice has seen its prompt and nothing more"
    assert flow.prompt_tokens[0] <= LONGEST_PROMPT_TOKENS, (
        f"a voice of {flow.prompt_tokens[0]} tokens; positions are known of {LONGEST_PROMPT_TOKENS}, which are 30 s"
    )
    keys_values: list[Tensor] = [
        flow.estimator.keys_values, flow.encoder.token_keys_values, flow.encoder.frame_keys_values,
    ]  # fmt: skip
    for memory in keys_values:
        assert memory.dtype == dtype, f"a voice in {memory.dtype} for a step in {dtype}"
        assert memory.device.type == device.type, f"a voice on {memory.device} for a step on {device}"
        assert memory.is_contiguous(), f"a voice's keys and values are not in order: {memory.stride()}"
