"""The operators of :mod:`llavakit.kernels.fused` in Triton; imported only where they run.

One program computes a few rows of channels of one token, without atomics and without tuning at
run time: results are the same from run to run, and launches can be captured in CUDA graphs. Places
are computed in int64, because an arena may hold more than 2^31 numbers.
"""

# Triton is not installed where types are checked, and its decorators have no types.
# mypy: disable-error-code="import-not-found, import-untyped"
# mypy: disallow-untyped-decorators=False, disallow-untyped-calls=False

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_HEADS = 4
"""Heads of one program of the rotation: 16 bytes a thread and load for 128 channels in 16 bits."""

TILE = 1024
"""Numbers of one warp of the merge: 32 a thread."""


def rotate_and_store(
    mixed: Tensor,
    cos: Tensor,
    sin: Tensor,
    keys: Tensor,
    values: Tensor,
    slots: Tensor,
    heads: int,
) -> Tensor:
    """Launch :func:`llavakit.kernels.fused.rotate_and_store` in Triton."""
    tokens, every, dim = mixed.shape
    query = mixed.new_empty((tokens, heads, dim))
    if not tokens:
        return query
    grid = (tokens, triton.cdiv(every, BLOCK_HEADS))
    with torch.cuda.device_of(mixed):  # Triton launches on the current device
        _rotate_and_store[grid](
            *(mixed, cos, sin, keys, values, slots, query),
            *(cos.stride(0), cos.stride(-1), sin.stride(0), sin.stride(-1)),
            *(*keys.stride()[:2], *values.stride()[:2], slots.stride(0), len(keys)),
            HEADS=heads,
            KV_HEADS=keys.shape[1],
            HALF=dim // 2,
            BLOCK_HEADS=BLOCK_HEADS,
            BLOCK_HALF=triton.next_power_of_2(dim // 2),
            num_warps=1,
        )
    return query


def merge_splits(out: Tensor, lse: Tensor, splits: Tensor) -> Tensor:
    """Launch :func:`llavakit.kernels.fused.merge_splits` in Triton."""
    (rows, heads, dim), (tokens, count) = out.shape, splits.shape
    merged = out.new_empty((tokens, heads, dim))
    if not tokens:
        return merged
    block_splits, block_dim = triton.next_power_of_2(count), triton.next_power_of_2(dim)
    with torch.cuda.device_of(out):
        _merge_splits[(tokens, heads)](
            *(out, lse, splits, merged, rows, count),
            *(*out.stride(), *lse.stride(), *splits.stride()),
            DIM=dim,
            BLOCK_SPLITS=block_splits,
            BLOCK_DIM=block_dim,
            num_warps=min(4, max(1, block_splits * block_dim // TILE)),
        )
    return merged


# Numbers that change from step to step are not specialised: one compilation serves all of them.
@triton.jit(do_not_specialize=["slot_step", "arena"])
def _rotate_and_store(
    mixed: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    slots: tl.tensor,
    query: tl.tensor,
    cos_row: tl.tensor,
    cos_step: tl.tensor,
    sin_row: tl.tensor,
    sin_step: tl.tensor,
    key_slot: tl.tensor,
    key_head: tl.tensor,
    value_slot: tl.tensor,
    value_head: tl.tensor,
    slot_step: tl.tensor,
    arena: tl.tensor,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
) -> None:
    """Rotate or copy BLOCK_HEADS heads of one token, whether queries, keys or values."""
    token = tl.program_id(0).to(tl.int64)
    head = (tl.program_id(1) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)).to(tl.int64)[:, None]
    channel = tl.arange(0, BLOCK_HALF)[None, :]
    turns = channel < HALF
    inside = (head < HEADS + 2 * KV_HEADS) & turns
    place = mixed + (token * (HEADS + 2 * KV_HEADS) + head) * (2 * HALF) + channel
    first, second = tl.load(place, inside, 0.0), tl.load(place + HALF, inside, 0.0)

    c = tl.load(cos + token * cos_row + channel * cos_step, turns, 0.0).to(tl.float32)
    s = tl.load(sin + token * sin_row + channel * sin_step, turns, 0.0).to(tl.float32)
    a, b = first.to(tl.float32), second.to(tl.float32)
    # By way of the type of the queries, whatever the arena's is: as the definition does.
    rotated_first = (a * c - b * s).to(first.dtype)
    rotated_second = (b * c + a * s).to(first.dtype)

    place = query + (token * HEADS + head) * (2 * HALF) + channel
    _store(place, rotated_first, rotated_second, HALF, inside & (head < HEADS))

    # A column, as the heads are: Triton's interpreter makes integers of single truth values.
    slot = tl.load(slots + token * slot_step) + tl.zeros_like(head)
    kept = inside & (slot >= 0) & (slot < arena)
    head -= HEADS
    place = keys + slot * key_slot + head * key_head + channel
    _store(place, rotated_first, rotated_second, HALF, kept & (head >= 0) & (head < KV_HEADS))
    head -= KV_HEADS
    place = values + slot * value_slot + head * value_head + channel
    _store(place, first, second, HALF, kept & (head >= 0))


@triton.jit
def _store(
    place: tl.tensor, first: tl.tensor, second: tl.tensor, HALF: tl.constexpr, mask: tl.tensor
) -> None:
    """Write both halves of rows of channels, in the destination's type."""
    tl.store(place, first.to(place.dtype.element_ty), mask)
    tl.store(place + HALF, second.to(place.dtype.element_ty), mask)


@triton.jit(
    do_not_specialize=["rows", "count", "lse_head", "lse_row", "splits_token", "splits_step"]
)
def _merge_splits(
    out: tl.tensor,
    lse: tl.tensor,
    splits: tl.tensor,
    merged: tl.tensor,
    rows: tl.tensor,
    count: tl.tensor,
    out_row: tl.tensor,
    out_head: tl.tensor,
    out_step: tl.tensor,
    lse_head: tl.tensor,
    lse_row: tl.tensor,
    splits_token: tl.tensor,
    splits_step: tl.tensor,
    DIM: tl.constexpr,
    BLOCK_SPLITS: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
) -> None:
    """Merge one token's splits in one head."""
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    heads = tl.num_programs(1)
    split = tl.arange(0, BLOCK_SPLITS)
    row = tl.load(splits + token * splits_token + split * splits_step, split < count, -1).to(
        tl.int64
    )
    used = (row >= 0) & (row < rows)
    score = tl.load(lse + head * lse_head + row * lse_row, used, float("-inf"))
    used = used & (score != float("-inf"))

    top = tl.max(score, 0)
    top = tl.where(top == float("-inf"), 0.0, top)  # -inf less -inf would be NaN
    weight = tl.where(used, tl.exp(score - top), 0.0)
    total = tl.sum(weight, 0)

    channel = tl.arange(0, BLOCK_DIM)
    place = out + row[:, None] * out_row + head * out_head + channel[None, :] * out_step
    # Rows that do not count are not even read: 0 * NaN is NaN.
    seen = tl.load(place, used[:, None] & (channel < DIM)[None, :], 0.0).to(tl.float32)
    mean = tl.sum(weight[:, None] * seen, 0) / tl.where(total == 0.0, 1.0, total)
    place = merged + (token * heads + head) * DIM + channel
    tl.store(place, mean.to(merged.dtype.element_ty), channel < DIM)
