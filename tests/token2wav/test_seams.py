"""What is heard where two chunks meet: nothing. And that the authors' way would not pass what is asked here."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import seams
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from seam_measures import (
    chunk_frames,
    glide,
    held_vowel,
    inner_parts,
    measure,
    middle,
    moving_mel,
    noise_of,
    seam_parts,
    signal_to_noise_db,
    stream,
    with_pitch_in_mel,
)
from torch import Tensor

from sidecar.token2wav.phase import continued_phase, summed_turns
from sidecar.token2wav.seams import CONTINUOUS, REFERENCE, VocoderState
from sidecar.token2wav.weights import load_vocoder

WEIGHTS = Path(__file__).parents[1] / "golden" / "data" / "hift" / "hift.safetensors"
VOCODER = load_vocoder(WEIGHTS)
AT_GIVEN_PITCH = with_pitch_in_mel(VOCODER)

FRAMES = 150
PLANS = ((10, 20, 25), (25,))
LEVEL_DB = 0.05
#: A step may be longer than whole vocoding's at the same place by the rounding and the 5 ms in which two sounds meet.
STEP = 1.01
SOUNDS = {
    "held vowel": (AT_GIVEN_PITCH, held_vowel(FRAMES, f0_hz=153.0)),
    "glide": (AT_GIVEN_PITCH, glide(FRAMES)),
    "mel": (VOCODER, moving_mel(FRAMES)),
}


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("sound", SOUNDS)
def test_a_border_is_as_loud_and_as_smooth_as_the_middle_of_a_chunk(sound: str, plan: tuple[int, ...]) -> None:
    vocoder, mel = SOUNDS[sound]
    chunks, noise = chunk_frames(FRAMES, *plan), noise_of(mel)
    ours, theirs = (measure(policy, vocoder, mel, noise, chunks) for policy in (CONTINUOUS, REFERENCE))
    assert ours.level_db < LEVEL_DB < theirs.level_db
    assert ours.border_step < ours.inner_step * STEP
    assert theirs.border_step > STEP
    assert ours.snr_db > (75 if vocoder is AT_GIVEN_PITCH else 45)
    assert theirs.snr_db < 25


def test_a_held_vowel_has_no_longer_step_at_a_border_than_anywhere_else() -> None:
    vocoder, mel = AT_GIVEN_PITCH, held_vowel(FRAMES, f0_hz=150.0)  # 3 periods a frame
    noise = torch.zeros_like(noise_of(mel))
    longest = {}
    for name, policy in (("ours", CONTINUOUS), ("theirs", REFERENCE)):
        parts = stream(policy, vocoder, mel, noise, chunk_frames(FRAMES, 25))
        steps = torch.cat(parts, dim=1)[0].diff().abs()
        first = parts[0].shape[1] - 1
        longest[name] = steps[first : first + 3841].max() / steps[12_000:19_200].max()
    assert longest["ours"] < 1.001
    assert longest["theirs"] > 1.05


@pytest.mark.parametrize("plan", PLANS)
def test_a_held_vowel_is_as_loud_at_a_border_as_in_the_middle_of_the_same_chunk(plan: tuple[int, ...]) -> None:
    mel = held_vowel(FRAMES, f0_hz=150.0)  # 160 ms are 24 periods
    noise, chunks = torch.zeros_like(noise_of(mel)), chunk_frames(FRAMES, *plan)
    furthest = {}
    for name, policy in (("ours", CONTINUOUS), ("theirs", REFERENCE)):
        sound = torch.cat(stream(policy, AT_GIVEN_PITCH, mel, noise, chunks), dim=1)[0].double()
        apart = [
            10 * (sound[border].square().mean() / sound[middle(inner)].square().mean()).log10()
            for border, inner in zip(seam_parts(chunks), inner_parts(chunks)[1:], strict=True)
        ]
        furthest[name] = torch.stack(apart).abs().max()
    assert furthest["ours"] < LEVEL_DB < furthest["theirs"]


@pytest.mark.parametrize(("tokens", "least_db"), [(1, 32), (2, 34), (3, 36), (5, 38)])
def test_small_chunks_sound_as_the_whole_does(tokens: int, least_db: float) -> None:
    mel = moving_mel(60)
    noise = noise_of(mel)
    parts = stream(CONTINUOUS, VOCODER, mel, noise, chunk_frames(60, tokens))
    with torch.inference_mode():
        assert signal_to_noise_db(torch.cat(parts, dim=1), VOCODER(mel, noise)) > least_db


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 25), min_size=1, max_size=6))
def test_any_chunk_plan_is_complete_and_sounds_as_the_whole_does(chunks: list[int]) -> None:
    mel = moving_mel(sum(chunks))
    noise = noise_of(mel)
    streamed = torch.cat(stream(CONTINUOUS, VOCODER, mel, noise, chunks), dim=1)
    with torch.inference_mode():
        whole = VOCODER(mel, noise)
    assert streamed.shape == whole.shape == (1, 480 * sum(chunks))
    assert signal_to_noise_db(streamed, whole) > 30


def test_streams_at_other_places_sound_the_same_alone_and_in_a_batch() -> None:
    """One still holds its first frame, one is past its first chunk, one is far on."""
    starts = ([16], [20], [30, 4, 40], [10, 7])
    states, mels = [], []
    for row, chunks in enumerate(starts):
        mel = moving_mel(sum(chunks)) + 0.1 * row
        state = CONTINUOUS.initial_state(VOCODER, 1)
        done = 0
        for frames in chunks:
            noise = noise_of(mel)[:, 480 * (done - state.held_frames) : 480 * (done + frames)]
            _, state = CONTINUOUS.step(VOCODER, mel[..., done : done + frames], state, noise, last=False)
            done += frames
        states.append(state)
        mels.append(moving_mel(12) - 0.1 * row)
    noise = torch.randn(len(starts), 480 * 28, 9, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        together, after = CONTINUOUS.step(VOCODER, torch.cat(mels), VocoderState.stack(states), noise, last=False)
        for row, (mel, state, next_state) in enumerate(zip(mels, states, after.split(), strict=True)):
            alone, own = CONTINUOUS.step(VOCODER, mel, state, noise[row : row + 1], last=False)
            assert signal_to_noise_db(together[row], alone[0]) > 80
            torch.testing.assert_close(next_state.turns, own.turns, atol=1e-4, rtol=0)
            assert next_state.frames_done == own.frames_done


@pytest.mark.parametrize("plan", [(10, 20, 25), (3,)])
def test_a_frame_has_the_same_source_in_every_call_that_sees_it(plan: tuple[int, ...]) -> None:
    vocoder, heard, mel = copy.deepcopy(VOCODER), list[Tensor](), moving_mel(100)
    vocoder.m_source.register_forward_hook(lambda _module, _given, source: heard.append(source[0, 0]))
    noise, chunks = noise_of(mel), chunk_frames(100, *plan)
    with torch.inference_mode():
        vocoder(mel, noise)
    stream(CONTINUOUS, vocoder, mel, noise, chunks)
    whole, *calls = heard
    for call, end in zip(calls, torch.tensor(chunks).cumsum(0).tolist(), strict=True):
        first = 480 * end - len(call)
        # the last 6 frames of a call await the frames after them
        final = call if end == 100 else call[: max(0, len(call) - 480 * 6)]
        torch.testing.assert_close(final, whole[first : first + len(final)], atol=2e-3, rtol=0)


def test_what_a_stream_holds_does_not_grow() -> None:
    mel = moving_mel(400)
    state, sizes = CONTINUOUS.initial_state(VOCODER, 1), set()
    with torch.inference_mode():
        for done in range(0, 400, 20):
            noise = torch.zeros(1, 480 * (state.held_frames + 20), 9)
            _, state = CONTINUOUS.step(VOCODER, mel[..., done : done + 20], state, noise, last=False)
            sizes.add((state.mel.shape, state.speech.shape, state.f0.shape, state.turns.shape))
    assert len(sizes) == 1
    assert state.held_frames == 16


@pytest.mark.parametrize("cut", [1, 2, 57, 99])
def test_the_phase_goes_on_exactly_where_a_call_ended(cut: int) -> None:
    f0 = 100 + 200 * torch.rand(1, 100, generator=torch.Generator().manual_seed(1))
    start, at_start = torch.zeros(1, dtype=torch.float64), torch.tensor([True])
    whole = continued_phase(f0, start, at_start)
    before = summed_turns(f0[:, :cut], start)[:, -1]
    rest = continued_phase(f0[:, cut:], before, ~at_start)
    around = (rest - whole[:, 480 * cut :] + torch.pi).remainder(2 * torch.pi) - torch.pi
    assert around.abs().max() < 1e-4


def test_an_hour_of_phase_is_as_exact_as_a_second() -> None:
    f0 = torch.full((1, 50 * 3600), 151.1)
    turns = summed_turns(f0, torch.zeros(1, dtype=torch.float64))[0, -1]
    expected = f0[0, 0].double() * 480 * len(f0[0]) / 24_000 % 1
    assert (turns - expected).abs() < 1e-5


def test_the_benchmark_prints_every_row_and_draws_a_border(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert seams.main(["--size", "tiny"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("| ours |") == 3 * len(seams.PLANS) + len(seams.SMALL_PLANS)
    assert printed.count("| the authors' |") == 3 * len(seams.PLANS)
    assert "nan" not in printed
    assert "vocoding 1 s" in printed
    assert seams.main(["--size", "tiny", "--figure", str(tmp_path / "seams.png")]) == 0
    assert (tmp_path / "seams.png").read_bytes().startswith(b"\x89PNG")
