"""Attention that reads the prompt, the ring and the new chunk where they lie, against torch's over all of it joined."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

pytest.importorskip("triton", reason="Triton runs on Linux alone")

from sidecar.token2wav.conformer import position_angles
from sidecar.token2wav.gpu.attention import RelativePositions, Remembered, attend
from sidecar.token2wav.gpu.positions import new_angles, position_table, turns_per_position
from sidecar.token2wav.gpu.rows import Field, Row, Rows

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HEADS, WIDTH, CHANNELS = 2, 16, 32
WINDOW, MOST = 20, 9
LAYERS, LAYER = 3, 1


@dataclass(frozen=True)
class Line:
    prompt: int
    done: int
    new: int  # 0: nothing but filling


#: In one batch: before, in and far past the window, where the ring has wrapped; another prompt each; one that fills up.
LINES = (Line(70, 0, 9), Line(6, 13, 5), Line(33, 1001, 7), Line(0, 0, 0), Line(3, 24, 8))


@dataclass(frozen=True)
class Memory:
    """Random keys and values: of each line's voice, of its ring, and of the same in the order of time."""

    voices: list[Tensor]  # (LAYERS, guidance, H, P, 2D)
    rings: Tensor  # (S, guidance, H, ring, 2D)
    rows: Rows

    @classmethod
    def of(cls, lines: Sequence[Line], *, columns_per_token: int, guidance: int) -> Memory:
        drawn = torch.Generator().manual_seed(1)
        ring = (WINDOW + MOST) * columns_per_token
        voices = [
            torch.randn(LAYERS, guidance, HEADS, line.prompt * columns_per_token, 2 * WIDTH, generator=drawn).to(DEVICE)
            for line in lines
        ]
        rings = torch.randn(len(lines) + 1, guidance, HEADS, ring, 2 * WIDTH, generator=drawn).to(DEVICE)
        rows = Rows.empty(len(lines), MOST, "cpu")
        rows.write(
            [
                Row(len(lines) - place, [0] * line.new, True, line.prompt, line.done, 0, 0, voice.data_ptr(), 0, 0)
                for place, (line, voice) in enumerate(zip(lines, voices, strict=True))
            ]
        )
        return cls(voices, rings, Rows(rows.control.to(DEVICE)))

    def joined(self, place: int, line: Line, guidance: int, columns_per_token: int) -> Tensor:
        """(H, L, 2D): what this line should see."""
        new, done = line.new * columns_per_token, line.done * columns_per_token
        past = min(done, WINDOW * columns_per_token)
        ring = self.rings[len(self.voices) - place, guidance]
        columns = torch.arange(done - past, done + new, device=DEVICE) % ring.shape[1]
        return torch.cat([self.voices[place][LAYER, guidance], ring[:, columns]], dim=1)

    def remembered(self, columns_per_token: int) -> Remembered:
        guided = self.rings.shape[1] > 1
        return Remembered(
            ring=self.rings if guided else self.rings[:, 0],
            voice_field=Field.VOICE_FRAMES,
            voice_index=LAYER * self.rings.shape[1],
            columns_per_token=columns_per_token,
            window=WINDOW * columns_per_token,
        )


@pytest.mark.parametrize(("columns_per_token", "guidance"), [(2, 2), (1, 1)])
def test_each_line_sees_its_prompt_its_window_and_its_new_steps(columns_per_token: int, guidance: int) -> None:
    memory = Memory.of(LINES, columns_per_token=columns_per_token, guidance=guidance)
    query = _random(guidance * len(LINES), MOST * columns_per_token, HEADS * WIDTH)
    out = attend(query, memory.remembered(columns_per_token), memory.rows, heads=HEADS)
    for row in range(guidance * len(LINES)):
        place, half = row % len(LINES), row // len(LINES)
        steps = LINES[place].new * columns_per_token
        keys, values = memory.joined(place, LINES[place], half, columns_per_token).chunk(2, dim=-1)
        expected = F.scaled_dot_product_attention(_heads(query[row, :steps]), keys, values)
        torch.testing.assert_close(out[row, :steps], expected.transpose(0, 1).flatten(1), atol=2e-6, rtol=1e-5)


def _random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2)).to(DEVICE)


def _heads(x: Tensor) -> Tensor:
    return x.view(len(x), HEADS, WIDTH).transpose(0, 1)  # (H, T, D)


@pytest.mark.parametrize("columns_per_token", [1, 2])
def test_relative_scores_are_those_of_the_true_positions(columns_per_token: int) -> None:
    memory = Memory.of(LINES, columns_per_token=columns_per_token, guidance=1)
    steps = MOST * columns_per_token
    query, factors = _random(len(LINES), steps, HEADS * WIDTH), _random(len(LINES), steps, HEADS * CHANNELS)
    relative = RelativePositions(
        factors,
        new_angles(memory.rows, turns_per_position(CHANNELS, query.device), columns_per_token=columns_per_token),
        position_table(200, CHANNELS, torch.float32, query.device),
    )
    out = attend(query, memory.remembered(columns_per_token), memory.rows, heads=HEADS, relative=relative)
    for place, line in enumerate(LINES):
        new = line.new * columns_per_token
        keys, values = memory.joined(place, line, 0, columns_per_token).chunk(2, dim=-1)
        distances = _distances(line, columns_per_token)  # (T, L)
        cosine, sine = position_angles(distances, CHANNELS)  # (T, L, C / 2)
        for_sine, for_cosine = factors[place, :new].view(new, HEADS, CHANNELS).transpose(0, 1).chunk(2, dim=-1)
        bias = torch.einsum("htc,tlc->htl", for_sine, sine) + torch.einsum("htc,tlc->htl", for_cosine, cosine)
        expected = F.scaled_dot_product_attention(
            _heads(query[place, :new]), keys, values, attn_mask=bias / math.sqrt(WIDTH)
        )
        torch.testing.assert_close(out[place, :new], expected.transpose(0, 1).flatten(1), atol=2e-5, rtol=1e-4)


def _distances(line: Line, columns_per_token: int) -> Tensor:
    prompt, done, new = (tokens * columns_per_token for tokens in (line.prompt, line.done, line.new))
    past = min(done, WINDOW * columns_per_token)
    keys = torch.cat([torch.arange(prompt), prompt + torch.arange(done - past, done + new)])
    return (prompt + done + torch.arange(new)[:, None] - keys).to(DEVICE)


@pytest.mark.parametrize("done", [0, 1000, 40_000])
def test_angles_of_new_steps_keep_their_digits_far_into_a_stream(done: int) -> None:
    rows = Rows.empty(2, 4, "cpu")
    rows.write([Row(0, [0] * 4, True, 13, done, 0, 0, 0, 0, 0), Row(1, [0], True, 7, done + 3, 0, 0, 0, 0, 0)])
    angles = new_angles(
        Rows(rows.control.to(DEVICE)), turns_per_position(CHANNELS, torch.device(DEVICE)), columns_per_token=2
    )
    for line, tokens in enumerate((13 + done, 7 + done + 3)):
        expected = torch.cat(position_angles(2 * tokens + torch.arange(8)[None], CHANNELS), dim=-1)
        torch.testing.assert_close(angles[line : line + 1].cpu(), expected, atol=1e-6, rtol=0)
