from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llavakit.engine import attention
from llavakit.engine.arena import KVArena
from llavakit.engine.attention import Row, attention_of
from llavakit.engine.extents import Extent

CPU = torch.device("cpu")
DIM, SLOTS = 8, 400
SHAPES = [(4, 2), (3, 3), (4, 1)]
"""Heads and key-value heads: grouped, equal, one for all."""
PREFIXES: list[tuple[Extent, ...]] = [
    (),
    (Extent(300, 20),),
    (Extent(300, 11), Extent(340, 5)),
    (Extent(360, 30),),
]


def obvious(row: Row, query: torch.Tensor, arena: KVArena, scaling: float) -> torch.Tensor:
    """Attention of one row in plain loops over heads and tokens."""
    slots = [s for e in row.prefix for s in range(e.start, e.end)]
    slots += list(range(row.slot, row.slot + row.own))
    out = torch.empty_like(query)
    heads, kv_heads = query.shape[1], arena.keys[0].shape[0]
    for token in range(row.count):
        seen = slots[: len(slots) - row.count + token + 1]
        for head in range(heads):
            keys = arena.keys[0][head // (heads // kv_heads), seen]
            values = arena.values[0][head // (heads // kv_heads), seen]
            weights = torch.softmax(keys @ query[token, head] * scaling, dim=0)
            out[token, head] = weights @ values
    return out


@settings(max_examples=80, deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.sampled_from(PREFIXES), st.integers(0, 25), st.sampled_from([1, 1, 1, 2, 7])),
        min_size=1,
        max_size=7,
    ),
    shape=st.sampled_from(SHAPES),
    tokens_first=st.booleans(),
    compiled=st.booleans(),
)
def test_every_row_attends_to_its_prefix_and_its_own_tokens(rows, shape, tokens_first, compiled):
    if not compiled:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(attention, "kernels", lambda: None)
            check_rows(rows, shape, tokens_first)
    else:
        check_rows(rows, shape, tokens_first)


def check_rows(rows, shape, tokens_first) -> None:
    torch.manual_seed(0)
    heads, kv_heads = shape
    arena = KVArena([CPU], SLOTS, kv_heads, DIM, dtype=torch.float32, tokens_first=tokens_first)
    for slots in (*arena.keys, *arena.values):
        slots.normal_()
    made = [
        Row(prefix, 40 * number, start, count) for number, (prefix, start, count) in enumerate(rows)
    ]
    total = sum(row.count for row in made)
    query = torch.randn(total, heads, DIM)
    key, value = torch.randn(total, kv_heads, DIM), torch.randn(total, kv_heads, DIM)
    out = attention_of(arena, made)(0, query, key, value, 0.3)
    position = 0
    for row in made:
        part = slice(position, position + row.count)
        stored = arena.keys[0][:, row.slot + row.start : row.slot + row.own]
        assert torch.equal(stored.transpose(0, 1), key[part])
        expected = obvious(row, query[part], arena, 0.3)
        torch.testing.assert_close(out[part], expected, rtol=1e-4, atol=1e-5)
        position += row.count


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_of_a_token_are_what_the_arena_allocates_with_its_scratch_slot(dtype):
    arena = KVArena([CPU] * 3, 100, 2, DIM, dtype=dtype)
    allocated = sum(slots.nbytes for slots in (*arena.keys, *arena.values))
    assert allocated == 101 * KVArena.bytes_per_token(3, 2, DIM, dtype)
