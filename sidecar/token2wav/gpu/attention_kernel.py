"""The kernels of `attention.py`: softmax over keys that lie in two places, in one pass (arXiv 2205.14135)."""

from __future__ import annotations

import triton
import triton.language as tl

from sidecar.token2wav.gpu.rows import STEP_SIZES, Field

_SLOT = tl.constexpr(Field.SLOT.value)
_NEW_TOKENS = tl.constexpr(Field.NEW_TOKENS.value)
_PROMPT_TOKENS = tl.constexpr(Field.PROMPT_TOKENS.value)
_TOKENS_DONE = tl.constexpr(Field.TOKENS_DONE.value)


# one compiled kernel for all layers as well as shapes: none of these says where anything lies
_OF_LAYER = ("voice_field", "voice_index", "columns_per_token", "window", "ring_columns", "splits")


@triton.jit(do_not_specialize=(*STEP_SIZES, *_OF_LAYER))
def attend_kernel(  # type: ignore[no-untyped-def]
    query_ptr,
    query_row_stride,
    query_step_stride,
    ring_ptr,
    ring_slot_stride,
    ring_guidance_stride,
    control_ptr,
    control_stride,
    position_query_ptr,
    position_query_row_stride,
    position_query_step_stride,
    angles_ptr,
    table_ptr,
    out_ptr,
    weight_ptr,
    batch,
    steps,
    voice_field,
    voice_index,
    columns_per_token,
    window,
    ring_columns,
    splits,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    HALF: tl.constexpr,
    SCALE: tl.constexpr,
    RELATIVE: tl.constexpr,
    WHOLE: tl.constexpr,
    DTYPE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """One block of queries of one row and head over one of `splits` parts of its keys; over all where WHOLE."""
    first_step, part = tl.program_id(0) // splits * BLOCK_M, tl.program_id(0) % splits
    head, row = tl.program_id(1), tl.program_id(2)
    line, guidance = row % batch, row // batch
    fields = control_ptr + line * control_stride
    slot = tl.load(fields + _SLOT)
    new = tl.load(fields + _NEW_TOKENS).to(tl.int32) * columns_per_token
    prompt = tl.load(fields + _PROMPT_TOKENS).to(tl.int32) * columns_per_token
    done = tl.load(fields + _TOKENS_DONE).to(tl.int32) * columns_per_token
    past = tl.minimum(done, window)
    seen = prompt + past + new
    # blocks without a step of the line's own have nothing to look at
    seen = tl.where(first_step < new, seen, 0)
    share = tl.cdiv(tl.cdiv(seen, splits), BLOCK_N) * BLOCK_N
    first, stop = part * share, tl.minimum(part * share + share, seen)

    of_head = ((voice_index + guidance).to(tl.int64) * HEADS + head) * prompt * (2 * WIDTH)
    voice = tl.load(fields + voice_field).to(tl.pointer_type(DTYPE)) + of_head
    ring = ring_ptr + slot * ring_slot_stride + guidance.to(tl.int64) * ring_guidance_stride
    ring += head.to(tl.int64) * (ring_columns * (2 * WIDTH))
    oldest = (done - past) % ring_columns

    step = first_step + tl.arange(0, BLOCK_M)
    number = tl.arange(0, BLOCK_D)
    own = (step[:, None] < steps) & (number[None, :] < WIDTH)
    of_query = row.to(tl.int64) * query_row_stride + step[:, None] * query_step_stride + head * WIDTH + number[None, :]
    query = tl.load(query_ptr + of_query, mask=own, other=0.0)

    best = tl.full((BLOCK_M,), -float("inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    out = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    if RELATIVE:
        half = tl.arange(0, BLOCK_H)
        turned_here = (step[:, None] < steps) & (half[None, :] < HALF)
        of_turned = row.to(tl.int64) * position_query_row_stride + step[:, None] * position_query_step_stride
        of_turned += head * (2 * HALF) + half[None, :]
        of_angles = (row * steps + step[:, None]) * (2 * HALF) + half[None, :]
        of_places = (window + step[:, None]) * (2 * HALF) + half[None, :]
        for_sine = tl.load(position_query_ptr + of_turned, mask=turned_here, other=0.0).to(tl.float32)
        for_cosine = tl.load(position_query_ptr + of_turned + HALF, mask=turned_here, other=0.0).to(tl.float32)
        cosine, sine = _turned(for_sine, for_cosine, angles_ptr + of_angles, turned_here, HALF)
        best, total, out = _look_at(
            best, total, out, query, cosine.to(DTYPE), sine.to(DTYPE), table_ptr, first, tl.minimum(prompt, stop),
            prompt, voice, ring, oldest, 0,
            ring_columns, WIDTH, HALF, SCALE, RELATIVE, BLOCK_N, BLOCK_D, BLOCK_H,
        )  # fmt: skip
        cosine, sine = _turned(for_sine, for_cosine, table_ptr + of_places, turned_here, HALF)
        best, total, out = _look_at(
            best, total, out, query, cosine.to(DTYPE), sine.to(DTYPE), table_ptr, tl.maximum(prompt, first), stop,
            prompt, voice, ring, oldest, window - past - prompt,
            ring_columns, WIDTH, HALF, SCALE, RELATIVE, BLOCK_N, BLOCK_D, BLOCK_H,
        )  # fmt: skip
    else:
        best, total, out = _look_at(
            best, total, out, query, query, query, table_ptr, first, stop,
            prompt, voice, ring, oldest, 0,
            ring_columns, WIDTH, HALF, SCALE, RELATIVE, BLOCK_N, BLOCK_D, BLOCK_H,
        )  # fmt: skip
    total = tl.where(total > 0, total, 1.0)  # with no key at all, `best` says so
    out = out / total[:, None]
    of_step = (part * tl.num_programs(2) + row) * steps + step
    of_out = of_step[:, None].to(tl.int64) * (HEADS * WIDTH) + head * WIDTH + number[None, :]
    tl.store(out_ptr + of_out, out.to(out_ptr.dtype.element_ty), mask=own)
    if not WHOLE:
        tl.store(weight_ptr + of_step * HEADS + head, best + tl.log2(total), mask=step < steps)


@triton.jit
def _turned(for_sine, for_cosine, angles, here, HALF: tl.constexpr):  # type: ignore[no-untyped-def]
    """What the keys' cosines, and what their sines, are multiplied with."""
    cosine = tl.load(angles, mask=here, other=0.0).to(tl.float32)
    sine = tl.load(angles + HALF, mask=here, other=0.0).to(tl.float32)
    return for_sine * sine + for_cosine * cosine, for_cosine * sine - for_sine * cosine


@triton.jit
def _look_at(  # type: ignore[no-untyped-def]
    best,
    total,
    out,
    query,
    for_cosine,
    for_sine,
    table_ptr,
    first,
    stop,
    prompt,
    voice,
    ring,
    oldest,
    to_place,
    ring_columns,
    WIDTH: tl.constexpr,
    HALF: tl.constexpr,
    SCALE: tl.constexpr,
    RELATIVE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """Softmax over keys `first` to `stop`, carried on; keys count from the prompt's first through the newest."""
    number = tl.arange(0, BLOCK_D)
    half = tl.arange(0, BLOCK_H)
    for start in range(first, stop, BLOCK_N):
        key = start + tl.arange(0, BLOCK_N)
        column = oldest + key - prompt
        column = tl.where(column >= ring_columns, column - ring_columns, column)
        at = tl.where(key < prompt, voice + key * (2 * WIDTH), ring + column * (2 * WIDTH))
        at = tl.multiple_of(at, 16)
        there = (key[:, None] < stop) & (number[None, :] < WIDTH)
        keys = tl.load(at[:, None] + number[None, :], mask=there, other=0.0)
        scores = tl.dot(query, tl.trans(keys), input_precision="ieee")
        if RELATIVE:
            places = table_ptr + (key + to_place)[:, None] * (2 * HALF) + half[None, :]
            known = (key[:, None] < stop) & (half[None, :] < HALF)
            cosines = tl.load(places, mask=known, other=0.0)
            scores = tl.dot(for_cosine, tl.trans(cosines), scores, input_precision="ieee")
            sines = tl.load(places + HALF, mask=known, other=0.0)
            scores = tl.dot(for_sine, tl.trans(sines), scores, input_precision="ieee")
        scores = tl.where(key[None, :] < stop, scores * SCALE, -float("inf"))
        better = tl.maximum(best, tl.max(scores, 1))
        weights = tl.exp2(scores - better[:, None])
        fading = tl.exp2(best - better)
        values = tl.load(at[:, None] + WIDTH + number[None, :], mask=there, other=0.0)
        out = tl.dot(weights.to(values.dtype), values, out * fading[:, None], input_precision="ieee")
        total = total * fading + tl.sum(weights, 1)
        best = better
    return best, total, out


@triton.jit(do_not_specialize=(*STEP_SIZES, *_OF_LAYER))
def merge_kernel(  # type: ignore[no-untyped-def]
    parts_ptr,
    weight_ptr,
    out_ptr,
    count,
    splits,
    MOST_SPLITS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Outcomes over parts of the keys -> over all. A part's weight is log2 of its sum of exponentials."""
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)  # of count = R T H
    number = tl.arange(0, BLOCK_D)
    inside = (place[:, None] < count) & (number[None, :] < WIDTH)
    at = place.to(tl.int64)[:, None] * WIDTH + number[None, :]
    best = tl.full((BLOCK,), -float("inf"), tl.float32)
    for part in tl.static_range(MOST_SPLITS):
        there = (place < count) & (part < splits)
        best = tl.maximum(best, tl.load(weight_ptr + part * count + place, mask=there, other=-float("inf")))
    best = tl.where(best == -float("inf"), 0.0, best)  # a row that saw nothing
    total = tl.zeros((BLOCK,), tl.float32)
    out = tl.zeros((BLOCK, BLOCK_D), tl.float32)
    for part in tl.static_range(MOST_SPLITS):
        there = (place < count) & (part < splits)
        weight = tl.exp2(tl.load(weight_ptr + part * count + place, mask=there, other=-float("inf")) - best)
        given = tl.load(parts_ptr + part * count.to(tl.int64) * WIDTH + at, mask=inside & there[:, None], other=0.0)
        out += weight[:, None] * given
        total += weight
    out = out / tl.where(total > 0, total, 1.0)[:, None]
    tl.store(out_ptr + at, out.to(out_ptr.dtype.element_ty), mask=inside)
