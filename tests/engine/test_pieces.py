from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llavakit.engine.arena import KVArena
from llavakit.engine.attention import ArenaAttention, Row, SegmentAttention
from llavakit.engine.decode import Shape, _tables, batch_bucket, table_of
from llavakit.engine.extents import Extent
from llavakit.engine.layout import LEAST_PIECE, pieces_of
from llavakit.engine.pieces import GATHERED, LOOPED, VARLEN, AttentionCall, working_kernel

CPU = torch.device("cpu")
DIM, SLOTS = 8, 4000
SHAPES = [(4, 2), (3, 3), (4, 1)]
"""Heads and key-value heads: grouped, equal, one for all."""


def noisy_arena(kv_heads: int, tokens_first: bool = True) -> KVArena:
    arena = KVArena([CPU], SLOTS, kv_heads, DIM, dtype=torch.float32, tokens_first=tokens_first)
    for slots in (*arena.keys, *arena.values):
        slots.normal_()
    return arena


@st.composite
def decoding_rows(draw) -> list[Row]:
    """Rows whose prefixes lie anywhere, in any order, shared or not."""
    extents = st.builds(Extent, st.integers(2000, 3000), st.integers(1, 600))
    prefixes = draw(st.lists(st.lists(extents, max_size=3).map(tuple), min_size=1, max_size=3))
    chosen = draw(
        st.lists(st.tuples(st.sampled_from(prefixes), st.integers(0, 300)), min_size=1, max_size=5)
    )
    return [Row(prefix, 320 * place, start, 1) for place, (prefix, start) in enumerate(chosen)]


def inputs(rows: int, heads: int, kv_heads: int) -> tuple[torch.Tensor, ...]:
    return tuple(torch.randn(rows, count, DIM) for count in (heads, kv_heads, kv_heads))


def in_pieces(arena: KVArena, rows: list[Row], shape: Shape, given) -> torch.Tensor:
    table = torch.from_numpy(table_of(rows, [7] * len(rows), shape, arena.scratch))
    starts, lengths = table[4 : 4 + shape.pieces], table[4 + shape.pieces :]
    tables = _tables(table[2].long(), starts, lengths, shape)
    attend = ArenaAttention(arena, lambda device: tables, GATHERED)
    padded = [torch.cat([one, torch.randn(shape.rows - len(one), *one.shape[1:])]) for one in given]
    return attend(0, *padded, 0.3)


@settings(max_examples=60, deadline=None)
@given(
    rows=decoding_rows(),
    pieces=st.sampled_from([4, 8, 16]),
    more=st.integers(0, 3),
    heads=st.sampled_from(SHAPES),
    tokens_first=st.booleans(),
)
def test_merged_pieces_equal_full_attention_of_any_tree(rows, pieces, more, heads, tokens_first):
    torch.manual_seed(0)
    arena = noisy_arena(heads[1], tokens_first)
    query, key, value = inputs(len(rows), *heads)
    shape = Shape(len(rows) + more, pieces, 1024)
    out = in_pieces(arena, rows, shape, (query, key, value))
    expected = SegmentAttention(arena, rows)(0, query, key, value, 0.3)
    torch.testing.assert_close(out[: len(rows)], expected, rtol=1e-4, atol=1e-5)
    assert torch.isfinite(out).all()


@given(decoding_rows(), st.sampled_from([4, 8, 16]))
def test_pieces_cover_what_a_row_sees_in_its_order(rows, count):
    for row in rows:
        pieces = pieces_of(row, count)
        assert len(pieces) <= count
        seen = [slot for piece in pieces for slot in range(piece.start, piece.end)]
        whole = [slot for e in row.prefix for slot in range(e.start, e.end)]
        assert seen == whole + list(range(row.slot, row.slot + row.own))
        if len(pieces) < count:
            assert all(piece.length < 2 * LEAST_PIECE for piece in pieces)


def test_padding_rows_write_to_the_scratch_slot_alone():
    torch.manual_seed(0)
    arena = noisy_arena(2)
    before = arena.keys[0].clone()
    given = inputs(1, 4, 2)
    in_pieces(arena, [Row((), 100, 5, 1)], Shape(8, 2, 64), given)
    changed = (arena.keys[0] != before).any(dim=0).any(dim=-1).nonzero().flatten()
    assert changed.tolist() == [105, arena.scratch]


def test_rows_that_run_beside_each_other_do_not_change_each_other():
    torch.manual_seed(0)
    arena = noisy_arena(2)
    rows = [Row((Extent(2500, 300),), 0, 10, 1), Row((), 320, 200, 1), Row((), 640, 0, 1)]
    query, key, value = inputs(3, 4, 2)
    together = in_pieces(arena, rows, Shape(4, 4, 512), (query, key, value))
    for place, row in enumerate(rows):
        part = slice(place, place + 1)
        given = (query[part], key[part], value[part])
        alone = in_pieces(arena, [row], Shape(1, 2, 512), given)
        torch.testing.assert_close(alone[0], together[place])


def test_self_test_takes_the_first_kernel_that_is_right_here():
    # Flash attention has no CPU form, so that it is passed over.
    assert working_kernel(4, 2, DIM, torch.float32, CPU) is GATHERED
    assert working_kernel(4, 2, DIM, torch.bfloat16, CPU) is GATHERED
    assert working_kernel(4, 2, DIM, torch.float32, CPU, (VARLEN,)) is None


def test_self_test_refuses_a_kernel_that_takes_starts_for_running_totals():
    def by_totals(query, keys, values, call, scaling):
        lengths = call.starts.diff().clamp(min=1, max=call.longest)
        return GATHERED.attend(query, keys, values, replace(call, lengths=lengths), scaling)

    wrong = replace(GATHERED, name="by totals", attend=by_totals)
    refused: dict[str, str] = {}
    found = working_kernel(4, 4, DIM, torch.float32, CPU, (wrong, GATHERED), refused)
    assert found is GATHERED
    assert "gives wrong numbers here" in refused["by totals"]


@pytest.mark.parametrize("shape", [(32, 32, 128), (40, 40, 128), (56, 8, 128)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "kernel",
    [
        pytest.param(GATHERED, id="gathered"),
        pytest.param(LOOPED, id="looped", marks=pytest.mark.slow),  # the same rule, in a loop
    ],
)
def test_self_test_takes_what_is_right_in_the_shapes_of_large_models(kernel, dtype, shape):
    assert working_kernel(*shape, dtype, CPU, (kernel,)) is kernel


def by_looped(alter):
    """LOOPED with its call, or its result, altered."""

    def attend(query, keys, values, call, scaling):
        return alter(query, keys, values, call, scaling)

    return replace(LOOPED, name="altered", attend=attend)


def shifted(column, number):
    def alter(query, keys, values, call, scaling):
        stretches = call.stretches.clone()
        stretches[:, column] += number
        return LOOPED.attend(query, keys, values, replace(call, stretches=stretches), scaling)

    return alter


def without_lse(query, keys, values, call, scaling):
    out, lse = LOOPED.attend(query, keys, values, call, scaling)
    return out, torch.zeros_like(lse)


def reversed_heads(query, keys, values, call, scaling):
    out, lse = LOOPED.attend(query, keys, values, call, scaling)
    return out.flip(1), lse


def unscaled(query, keys, values, call, scaling):
    return LOOPED.attend(query, keys, values, call, 1.0)


def neighbour(query, keys, values, call, scaling):
    out, lse = LOOPED.attend(query, keys, values, call, scaling)
    return out.roll(1, 0), lse


def not_causal(query, keys, values, call, scaling):
    return LOOPED.attend(query, keys, values, replace(call, causal=False), scaling)


FAULTS = {
    "own token unseen": shifted(3, -1),
    "start one slot late": shifted(2, 1),
    "log-sum-exp ignored": without_lse,
    "heads reversed": reversed_heads,
    "no scaling": unscaled,
    "a row's neighbour read": neighbour,
    "tokens to come seen": not_causal,
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_self_test_refuses_planted_faults(fault, dtype):
    wrong = by_looped(FAULTS[fault])
    assert working_kernel(8, 2, 64, dtype, CPU, (wrong, LOOPED)) is LOOPED


def test_self_test_refuses_a_kernel_whose_log_sum_exp_is_laid_out_otherwise():
    def turned(query, keys, values, call, scaling):
        out, lse = GATHERED.attend(query, keys, values, call, scaling)
        return out, lse.T.reshape(lse.shape)

    assert (
        working_kernel(4, 4, DIM, torch.float32, CPU, (replace(GATHERED, attend=turned),)) is None
    )


def test_gathered_attention_gives_the_log_sum_exp_of_the_scores():
    torch.manual_seed(0)
    keys, values, query = torch.randn(50, 1, DIM), torch.randn(50, 1, DIM), torch.randn(1, 1, DIM)
    queries, starts, lengths = (
        torch.tensor(one, dtype=torch.int32) for one in ([0, 1], [20, 20], [7])
    )
    call = AttentionCall(queries, starts, lengths, most=1, longest=64, causal=True)
    _, lse = GATHERED.attend(query, keys, values, call, 0.5)
    expected = (keys[20:27, 0] @ query[0, 0] * 0.5).logsumexp(0)
    torch.testing.assert_close(lse, expected.view(1, 1))


def test_batches_are_rounded_up_to_few_sizes():
    assert [batch_bucket(n) for n in (1, 2, 3, 5, 9, 17, 25, 32, 33, 65)] == [
        *(1, 2, 4, 8, 16, 24, 32, 32, 48, 80)
    ]
