"""Attention over stretches of the arena in plain torch, one stretch after the other.

One operator for torch, so that a pass looks the same to a tracer whichever kernel attends.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

QUERIES_AT_ONCE = 256
"""Queries of one stretch whose scores are computed together, in fp32."""


@torch.library.custom_op("llavakit::attend_stretches", mutates_args=())
def attend_stretches(
    query: Tensor, keys: Tensor, values: Tensor, stretches: Tensor, causal: bool, scaling: float
) -> tuple[Tensor, Tensor]:
    """Attend to one stretch after the other, in plain products.

    Args:
        query: [Q, heads, dim].
        keys, values: [slots, kv_heads, dim].
        stretches: [N, 4] on the host: first query, queries, first slot, slots.
        causal: whether a stretch's last query sees all of it, the one before one slot less.
        scaling: factor of the scores.

    Returns:
        [Q, heads, dim], and the log-sum-exp of the scores, [heads, Q] in fp32.
    """
    out = torch.zeros_like(query, memory_format=torch.contiguous_format)
    lse = query.new_full((query.shape[1], len(query)), float("-inf"), dtype=torch.float32)
    for first, count, start, length in _adjacent(stretches.tolist()):
        single = not causal or count < 0
        last = first + abs(count)
        seen = slice(start, start + length)
        if length == 0:
            continue
        for place in range(first, last, QUERIES_AT_ONCE):
            end = min(place + QUERIES_AT_ONCE, last)
            behind = None if single else length - (last - place)
            part = query[place:end]
            out[place:end], lse[:, place:end] = _plain(
                part, keys[seen], values[seen], behind, scaling
            )
    return out, lse


@attend_stretches.register_fake
def _(
    query: Tensor, keys: Tensor, values: Tensor, stretches: Tensor, causal: bool, scaling: float
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(query, memory_format=torch.contiguous_format), query.new_empty(
        (query.shape[1], len(query)), dtype=torch.float32
    )


def _adjacent(stretches: Sequence[Sequence[int]]) -> list[tuple[int, int, int, int]]:
    """Put queries together that follow each other and read the same; their count is negative."""
    joined: list[tuple[int, int, int, int]] = []
    for first, count, start, length in stretches:
        if joined and count == 1:
            before, more, old_start, old_length = joined[-1]
            alike = (old_start, old_length) == (start, length)
            if alike and more < 0 and before - more == first:
                joined[-1] = (before, more - 1, start, length)
                continue
        joined.append((first, -1 if count == 1 else count, start, length))
    return joined


def _plain(
    query: Tensor, keys: Tensor, values: Tensor, behind: int | None, scaling: float
) -> tuple[Tensor, Tensor]:
    """[n, heads, dim] over [s, kv_heads, dim]; query i sees keys up to ``behind + i``, or all."""
    count, heads, dim = query.shape
    kv_heads = keys.shape[1]
    grouped = query.view(count, kv_heads, -1, dim).permute(1, 2, 0, 3)
    keys, values = (one.to(query.dtype).transpose(0, 1) for one in (keys, values))
    scores = grouped.reshape(kv_heads, -1, dim) @ keys.transpose(1, 2)
    scores = scores.float().mul_(scaling).view(kv_heads, heads // kv_heads, count, -1)
    if behind is not None:
        ahead = torch.ones(count, scores.shape[-1], dtype=torch.bool, device=query.device)
        scores.masked_fill_(ahead.triu_(behind + 1), float("-inf"))
    total = scores.logsumexp(dim=-1)
    weights = scores.sub_(total[..., None]).exp_().to(query.dtype)
    out = weights.view(kv_heads, -1, weights.shape[-1]) @ values
    out = out.view(heads, count, dim).transpose(0, 1)
    return out, total.view(heads, count)
