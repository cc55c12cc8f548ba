from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llavakit.engine.attention import KVArena, Row
from llavakit.engine.extents import Extent

HEADS, KV_HEADS, DIM, SLOTS = 4, 2, 8, 400
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
    for token in range(row.count):
        seen = slots[: len(slots) - row.count + token + 1]
        for head in range(HEADS):
            keys = arena.keys[0][head // (HEADS // KV_HEADS), seen]
            values = arena.values[0][head // (HEADS // KV_HEADS), seen]
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
    short=st.sampled_from([1, 8, 100]),
)
def test_every_row_attends_to_its_prefix_and_its_own_tokens(rows, short):
    torch.manual_seed(0)
    arena = KVArena(1, SLOTS, KV_HEADS, DIM, dtype=torch.float32, device=torch.device("cpu"))
    arena.short = short
    for slots in (*arena.keys, *arena.values):
        slots.normal_()
    made = [
        Row(prefix, 40 * number, start, count) for number, (prefix, start, count) in enumerate(rows)
    ]
    total = sum(row.count for row in made)
    query = torch.randn(total, HEADS, DIM)
    key, value = torch.randn(total, KV_HEADS, DIM), torch.randn(total, KV_HEADS, DIM)
    out = arena.attend(made)(0, query, key, value, 0.3)
    position = 0
    for row in made:
        part = slice(position, position + row.count)
        stored = arena.keys[0][:, row.slot + row.start : row.slot + row.own]
        assert torch.equal(stored.transpose(0, 1), key[part])
        expected = obvious(row, query[part], arena, 0.3)
        torch.testing.assert_close(out[part], expected, rtol=1e-4, atol=1e-5)
        position += row.count


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_of_a_token_are_what_the_arena_allocates(dtype):
    arena = KVArena(3, 100, KV_HEADS, DIM, dtype=dtype, device=torch.device("cpu"))
    allocated = sum(slots.nbytes for slots in (*arena.keys, *arena.values))
    assert allocated == 100 * KVArena.bytes_per_token(3, KV_HEADS, DIM, dtype)
