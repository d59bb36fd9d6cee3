"""The velocity network and its solver over slots, held to those over values."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from tiny_token2wav import speech_tokens, tiny_flow, tiny_network, voice_of
from torch import Tensor

pytest.importorskip("triton", reason="needs Triton, which is there on Linux alone")

from sidecar.token2wav.flow import Flow
from sidecar.token2wav.gpu import products
from sidecar.token2wav.gpu.products import linear
from sidecar.token2wav.gpu.rows import Row, Rows
from sidecar.token2wav.gpu.slots import Slots, allocate
from sidecar.token2wav.gpu.solver import FusedSolver
from sidecar.token2wav.history import PAST_FRAMES
from sidecar.token2wav.noise import SeededNoise
from sidecar.token2wav.state import FlowState

# what stands beyond a line's own frames is NaN here, which the interpreter remarks on
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NOISE = SeededNoise()
STEPS = 2
MOST_TOKENS = 9
BINS = 80


@dataclass
class Stream:
    """One stream on both roads; its state is the oracle's."""

    slot: int
    state: FlowState
    keys_values: Tensor  # of its voice, for the kernels
    seed: int

    @property
    def prompt_tokens(self) -> int:
        return self.state.prompt_tokens[0]

    @property
    def spoken(self) -> int:
        return self.state.tokens_done[0] - self.prompt_tokens


class Roads:
    """Streams stepped by the oracle one by one in float32, and by the kernels all at once."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self.oracle = tiny_flow(steps=STEPS)
        here = Flow(tiny_network(steps=STEPS), device=DEVICE)
        self.dtype = dtype
        self.solver = FusedSolver(here.network, here.modulation, dtype)
        self.slots = allocate(here.config, 4, most_tokens=MOST_TOKENS, dtype=dtype, device=DEVICE)

    def opened(self, slot: int, *, prompt_tokens: int, spoken: int, seed: int) -> Stream:
        """A stream that has said so many tokens, put into its slot."""
        prompt_noise = NOISE.prompt_mel(2 * prompt_tokens, BINS)[None]
        _, voice = self.oracle.open_voice(voice_of(prompt_tokens, seed=seed), prompt_noise)
        keys_values = voice.estimator.keys_values.to(DEVICE, self.dtype).contiguous()
        stream = Stream(slot, voice, keys_values, seed)
        if spoken:
            _, _, stream.state = self.alone(stream, spoken)
        put(self.slots, slot, stream.state)
        return stream

    def alone(self, stream: Stream, tokens: int) -> tuple[Tensor, tuple[Tensor, Tensor], FlowState]:
        """The oracle's mel (T, M), the mu and noise (T, M) that its solver was given for it, and the state after."""
        state = stream.state
        ids = speech_tokens(tokens + 3, seed=100 * stream.seed + stream.spoken)[None]
        noise = NOISE.speech_mel(stream.seed, state.prompt_frames[0], state.frames_done[0], 2 * tokens, BINS)[None]
        mu = self.oracle.encode(ids, state, last=False).mu
        mel, (after,) = self.oracle.step(ids, [state], noise, last=False)
        return mel[0].T, (mu[0].T, noise[0].T), after

    def step(self, lines: list[tuple[Stream, int] | None], *, room: int = MOST_TOKENS) -> list[tuple[Tensor, Tensor]]:
        """One step of streams and their new tokens, None for a line that only fills up; (ours, the oracle's) of each.

        Whatever is beyond a line's own frames is NaN, so that a look at it would show.
        """
        rows = Rows.empty(len(lines), room, "cpu")
        given = torch.full((2, len(lines), 2 * room, BINS), torch.nan)  # mu, noise
        expected, written = [], []
        for place, line in enumerate(lines):
            if line is None:
                written.append(Row(0, (), True, 0, 0, 0, 0, 0, 0, 0))
                continue
            stream, tokens = line
            written.append(
                Row(
                    slot=stream.slot,
                    tokens=range(tokens),
                    last=True,
                    prompt_tokens=stream.prompt_tokens,
                    tokens_done=stream.spoken,
                    held_frames=0,
                    seed=stream.seed,
                    voice_frames=stream.keys_values.data_ptr(),
                    voice_tokens=0,
                    voice_upsampled=0,
                )
            )
            mel, inputs, stream.state = self.alone(stream, tokens)
            given[:, place, : 2 * tokens] = torch.stack(inputs)
            expected.append((place, mel))
        rows.write(written)
        rows = Rows(rows.control.to(DEVICE))
        ours = self.solver(given[0].to(DEVICE, self.dtype), given[1].to(DEVICE), rows, self.slots).cpu()
        assert ours.dtype == torch.float32
        return [(ours[place, : len(mel)], mel) for place, mel in expected]


def put(slots: Slots, slot: int, state: FlowState) -> None:
    """The oracle's state as a slot holds it."""
    slots.speaker[slot] = state.speaker[0].to(slots.speaker)
    slots.conv_past[slot] = state.estimator.conv_past[:, :, :, 0].to(slots.conv_past)
    slots.frames[slot] = torch.nan  # what another stream left there
    columns, keys_values = own_columns(slots, state)
    slots.frames[slot, ..., columns, :] = keys_values.to(slots.frames)


def own_columns(slots: Slots, state: FlowState) -> tuple[list[int], Tensor]:
    """Where in a ring the oracle's columns after the prompt stand, and they themselves (K, blocks, 2, H, L, 2D)."""
    prompt, ring = state.prompt_frames[0], slots.frames.shape[-2]
    positions = state.estimator.frames[0][prompt:]
    assert len(positions) <= PAST_FRAMES
    return [(position - prompt) % ring for position in positions], state.estimator.keys_values[:, :, :, 0, :, prompt:]


def assert_slot_holds(slots: Slots, slot: int, state: FlowState) -> None:
    columns, keys_values = own_columns(slots, state)
    torch.testing.assert_close(slots.frames[slot, ..., columns, :].cpu(), keys_values, atol=1e-4, rtol=0)
    conv_past = state.estimator.conv_past[:, :, :, 0]
    torch.testing.assert_close(slots.conv_past[slot].cpu(), conv_past, atol=1e-4, rtol=0)


def test_streams_of_other_voices_positions_and_lengths_in_one_step_sound_as_the_oracle_alone() -> None:
    roads = Roads()
    early = roads.opened(2, prompt_tokens=21, spoken=0, seed=1)
    middle = roads.opened(0, prompt_tokens=7, spoken=44, seed=2)
    late = roads.opened(3, prompt_tokens=40, spoken=53, seed=3)  # its ring of 118 frames goes round
    rounds: list[list[tuple[Stream, int] | None]] = [
        [(early, 9), (middle, 1), (late, 4)],
        [(late, 8), None, (early, 2), (middle, 9)],
        [(middle, 5), (late, 9), (early, 9)],
    ]
    for lines in rounds:
        for ours, expected in roads.step(lines):
            torch.testing.assert_close(ours, expected, atol=2e-4, rtol=0)
    joined = roads.opened(0, prompt_tokens=12, spoken=0, seed=4)  # in the slot of one that has left
    for tokens in (3, 6):
        for ours, expected in roads.step([(joined, 9 - tokens), (late, tokens), (early, tokens)]):
            torch.testing.assert_close(ours, expected, atol=2e-4, rtol=0)
    assert late.spoken > 59  # more than the ring holds
    for stream in (early, late, joined):
        assert_slot_holds(roads.slots, stream.slot, stream.state)


def test_a_line_that_only_fills_up_touches_no_slot() -> None:
    roads = Roads()
    speaking = roads.opened(2, prompt_tokens=5, spoken=3, seed=5)
    asleep = [slot for slot in range(roads.slots.count) if slot != speaking.slot]
    for tensor in (roads.slots.frames, roads.slots.conv_past, roads.slots.speaker):
        tensor[asleep] = torch.nan
    ((ours, expected),) = roads.step([None, (speaking, 2), None], room=3)
    torch.testing.assert_close(ours, expected, atol=2e-4, rtol=0)
    assert roads.slots.frames[asleep].isnan().all()
    assert roads.slots.conv_past[asleep].isnan().all()


def test_nothing_is_written_beyond_the_frames_a_stream_really_has() -> None:
    roads = Roads()
    stream = roads.opened(1, prompt_tokens=4, spoken=0, seed=6)
    roads.step([(stream, 2)])
    assert roads.slots.frames[1, ..., :4, :].isfinite().all()
    assert roads.slots.frames[1, ..., 4:, :].isnan().all()


# Triton's interpreter multiplies bfloat16 as the integers it keeps them in: that is for a GPU only
@pytest.mark.parametrize(
    ("dtype", "most"), [(torch.float16, 0.01), (torch.bfloat16, 0.08)][: 2 if DEVICE == "cuda" else 1]
)
def test_sixteen_bits_stay_close_to_float32(dtype: torch.dtype, most: float) -> None:
    roads = Roads(dtype)
    streams = [
        roads.opened(slot, prompt_tokens=prompt, spoken=spoken, seed=slot)
        for slot, (prompt, spoken) in enumerate([(6, 0), (15, 8), (4, 20)])
    ]
    for lengths in ((4, 1, 3), (2, 4, 1)):
        for ours, expected in roads.step(list(zip(streams, lengths, strict=True)), room=4):
            assert ((ours - expected).norm() / expected.norm()).item() < most


@pytest.mark.parametrize("gelu", [True, False])
def test_a_product_equals_the_layers_of_any_size(gelu: bool) -> None:
    drawn = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(*shape, generator=drawn).to(DEVICE) for shape in ((270, 300), (70, 300), (70,)))
    expected = F.linear(x, weight, bias)
    expected = F.gelu(expected, approximate="tanh") if gelu else expected
    torch.testing.assert_close(linear(x, weight, bias, gelu=gelu), expected, atol=5e-5, rtol=1e-5)


def test_heads_finished_by_a_kernel_of_their_own_are_those_of_one_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "CUBLAS_HEADS_ROWS", 0)
    roads = Roads()
    streams = [
        roads.opened(slot, prompt_tokens=prompt, spoken=spoken, seed=slot)
        for slot, (prompt, spoken) in enumerate([(6, 0), (15, 55), (4, 20)])
    ]
    for lengths in ((4, 1, 3), (2, 4, 1)):
        for ours, expected in roads.step(list(zip(streams, lengths, strict=True)), room=4):
            torch.testing.assert_close(ours, expected, atol=2e-4, rtol=0)
