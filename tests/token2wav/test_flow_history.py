"""What is dropped from a stream's past, and when: ours, and the reference's odd cut."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from sidecar.token2wav.history import REFERENCE, HistoryPolicy, RecentHistory, gather


def frames_after(policy: HistoryPolicy, prompt: int, chunks: list[int]) -> list[int]:
    kept = list(range(prompt))
    done = prompt
    for chunk in chunks:
        new = list(range(done, done + chunk))
        both = [*kept, *new]
        kept = [both[place] for place in policy.frames_kept(kept, new, prompt)]
        done += chunk
    return kept


@pytest.mark.parametrize("chunks", [[50, 50], [60, 100, 7], [500], [1] * 300])
def test_ours_keeps_the_prompt_and_the_newest_frames_in_time_order(chunks: list[int]) -> None:
    kept = frames_after(RecentHistory(past_frames=100), 220, chunks)
    done = 220 + sum(chunks)
    assert kept == [*range(220), *range(max(220, done - 100), done)]


def test_the_reference_keeps_everything_for_two_seconds() -> None:
    assert sorted(frames_after(REFERENCE, 220, [50, 50])) == list(range(320))


def test_the_reference_then_drops_the_middle_of_the_prompt() -> None:
    kept = sorted(frames_after(REFERENCE, 220, [50, 50, 50]))
    assert kept == [*range(220 - 150), *range(120, 220), *range(220, 370)]


def test_the_reference_ends_with_its_own_speech_and_the_prompts_end() -> None:
    kept = sorted(frames_after(REFERENCE, 220, [50] * 6))
    # of the chunk that straddles the limit, the earliest frames stay
    assert kept == [*range(120, 220), *range(270, 290), *range(320, 520)]


def test_the_reference_keeps_a_short_prompt_and_what_stood_before_it() -> None:
    kept = frames_after(REFERENCE, 60, [50, 50, 50, 26])
    assert len(kept) == 160
    assert kept[-60:] == list(range(60))
    assert kept[-100:-60] == list(range(70, 110)), "the end of the first chunk stays for ever"


def test_the_reference_forgets_no_token() -> None:
    assert REFERENCE.tokens_kept(range(5000), range(5000, 5025), 110) == list(range(5025))


def test_tokens_are_dropped_between_prompt_and_window() -> None:
    policy = RecentHistory(past_tokens=6)
    cached = [0, 1, 2, 5, 6, 7, 8, 9, 10]
    both = [*cached, 11, 12]
    assert [both[place] for place in policy.tokens_kept(cached, [11, 12], 3)] == [0, 1, 2, 7, 8, 9, 10, 11, 12]


@pytest.mark.parametrize("places", [[0, 1, 2, 3, 4, 5, 6], [4, 5, 6, 0, 1], [0, 2, 3, 4, 6], [6], []])
def test_kept_columns_are_copied_in_their_order(places: list[int]) -> None:
    cached, new = torch.arange(4.0).view(1, 4, 1), torch.arange(4.0, 7.0).view(1, 3, 1)
    assert gather(cached, new, places).flatten().tolist() == [float(place) for place in places]


def test_joining_without_a_cut_is_plain_concatenation() -> None:
    pieces = [torch.full((2, size, 3), float(size)) for size in (3, 1, 2)]
    for before, after in pairwise(pieces):
        whole = torch.cat([before, after], dim=-2)
        assert torch.equal(gather(before, after, range(whole.shape[-2])), whole)
