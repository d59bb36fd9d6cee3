"""Chunk borders depend on the position in the stream alone."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.streaming.chunking import Chunk, Chunker, ChunkPlan

LOOKAHEAD = 3
PLAN = ChunkPlan(first_chunk_tokens=10, chunk_tokens=25)


def chunks_of(pieces: list[list[int]], *, plan: ChunkPlan = PLAN, take_late: bool = False) -> list[Chunk]:
    chunker = Chunker(plan, lookahead_tokens=LOOKAHEAD)
    taken = []
    for piece in pieces:
        chunker.feed(piece)
        while not take_late and chunker.peek() is not None:
            assert chunker.ready
            taken.append(chunker.take())
        assert take_late or not chunker.ready
    chunker.finish()
    while chunker.peek() is not None:
        taken.append(chunker.take())
    assert chunker.done
    return taken


def test_the_first_two_chunks_are_small_and_the_next_half_as_large_again_up_to_the_steady_size() -> None:
    assert [chunk.new_tokens for chunk in chunks_of([list(range(200))])][:6] == [10, 10, 15, 22, 25, 25]
    assert ChunkPlan(8, 25).sizes == (8, 8, 12, 18, 25)
    assert ChunkPlan(25, 25).sizes == (25, 25)
    assert [ChunkPlan(1, 10).new_tokens(index) for index in range(9)] == [1, 1, 2, 3, 4, 6, 9, 10, 10]


def test_a_chunk_waits_for_its_lookahead() -> None:
    chunker = Chunker(PLAN, lookahead_tokens=LOOKAHEAD)
    chunker.feed(range(12))
    assert chunker.peek() is None
    chunker.feed([12])
    assert chunker.peek() == Chunk(tuple(range(13)), new_tokens=10, last=False)


def test_the_lookahead_comes_again_in_the_next_chunk() -> None:
    first, second, *_ = chunks_of([list(range(60))])
    assert first.tokens[-LOOKAHEAD:] == second.tokens[:LOOKAHEAD]


@pytest.mark.parametrize("tokens", [1, 3, 4, 12])
def test_a_short_reply_is_one_last_chunk(tokens: int) -> None:
    assert chunks_of([list(range(tokens))]) == [Chunk(tuple(range(tokens)), tokens, last=True)]


def test_a_reply_of_just_a_chunk_and_its_lookahead_keeps_its_border_when_the_end_is_known() -> None:
    first, last = chunks_of([list(range(13))], take_late=True)
    assert (first.new_tokens, first.last) == (10, False)
    assert (last.tokens, last.last) == ((10, 11, 12), True)


def test_a_reply_without_tokens_has_no_chunk() -> None:
    assert chunks_of([]) == []


@given(
    tokens=st.integers(0, 150),
    cuts=st.lists(st.integers(0, 150), max_size=12),
    sizes=st.tuples(st.integers(1, 40), st.integers(0, 40)),
)
def test_chunks_do_not_depend_on_when_tokens_or_the_end_came(
    tokens: int, cuts: list[int], sizes: tuple[int, int]
) -> None:
    plan = ChunkPlan(sizes[0], sizes[0] + sizes[1])
    borders = sorted({0, tokens, *(cut for cut in cuts if cut < tokens)})
    pieces = [list(range(start, end)) for start, end in itertools.pairwise(borders)]
    one_by_one = [[token] for token in range(tokens)]
    whole = chunks_of([list(range(tokens))], plan=plan)
    assert chunks_of(pieces, plan=plan) == chunks_of(one_by_one, plan=plan) == whole
    assert chunks_of(pieces, plan=plan, take_late=True) == whole
    assert sum(chunk.new_tokens for chunk in whole) == tokens
    assert [chunk.last for chunk in whole] == [False] * (len(whole) - 1) + [True] * bool(whole)


def authors_schedule(pieces: list[list[int]], chunk_tokens: int) -> list[Chunk]:
    """The authors' loop: with 25 tokens and 3 more in its buffer it runs them and drops 25, at the end it runs the
    rest."""
    buffer, chunks = [], []
    for token in itertools.chain(*pieces):
        buffer.append(token)
        if len(buffer) == chunk_tokens + LOOKAHEAD:
            chunks.append(Chunk(tuple(buffer), chunk_tokens, last=False))
            buffer = buffer[chunk_tokens:]
    return [*chunks, Chunk(tuple(buffer), len(buffer), last=True)]


@given(pieces=st.lists(st.lists(st.integers(0, 6560), max_size=40), max_size=6), size=st.integers(1, 30))
def test_chunks_of_one_size_are_those_of_the_authors(pieces: list[list[int]], size: int) -> None:
    pieces.append([1])  # they always have a token to say
    assert chunks_of(pieces, plan=ChunkPlan(size, size)) == authors_schedule(pieces, size)
