from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llavakit.engine.arena import KVArena
from llavakit.engine.attention import Row, SegmentAttention
from llavakit.engine.decode import Shape, batch_bucket, table_of
from llavakit.engine.extents import Extent
from llavakit.engine.pieces import (
    GATHERED,
    LEAST_PIECE,
    VARLEN,
    PieceAttention,
    Pieces,
    merge,
    pieces_of,
    working_kernel,
)

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
    starts, lengths = table[3 : 3 + shape.pieces], table[3 + shape.pieces :]
    attend = PieceAttention(arena, table[2].long(), starts, lengths, shape.longest, GATHERED)
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


@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), float("-inf"), 0.0])
def test_piece_of_length_zero_counts_for_nothing_whatever_the_kernel_gives(garbage):
    out, lse = torch.randn(2 * 3, 4, DIM), torch.randn(4, 2 * 3)
    out[3:], lse[:, 3:] = garbage, garbage
    lengths = torch.tensor([[5, 1, 9], [0, 0, 0]], dtype=torch.int32)
    torch.testing.assert_close(merge(out, lse, lengths), out[:3])


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
    def by_totals(query, keys, values, pieces, scaling):
        lengths = pieces.starts.diff().clamp(min=1, max=pieces.longest)
        return GATHERED.attend(query, keys, values, replace(pieces, lengths=lengths), scaling)

    wrong = replace(GATHERED, name="by totals", attend=by_totals)
    assert working_kernel(4, 4, DIM, torch.float32, CPU, (wrong, GATHERED)) is GATHERED


def test_self_test_refuses_a_kernel_whose_log_sum_exp_is_laid_out_otherwise():
    def turned(query, keys, values, pieces, scaling):
        out, lse = GATHERED.attend(query, keys, values, pieces, scaling)
        return out, lse.T.reshape(lse.shape)

    assert (
        working_kernel(4, 4, DIM, torch.float32, CPU, (replace(GATHERED, attend=turned),)) is None
    )


def test_gathered_attention_gives_the_log_sum_exp_of_the_scores():
    torch.manual_seed(0)
    keys, values, query = torch.randn(50, 1, DIM), torch.randn(50, 1, DIM), torch.randn(1, 1, DIM)
    ints = {"dtype": torch.int32}
    pieces = Pieces(
        torch.tensor([0, 1], **ints), torch.tensor([20, 20], **ints), torch.tensor([7], **ints), 64
    )
    _, lse = GATHERED.attend(query, keys, values, pieces, 0.5)
    expected = (keys[20:27, 0] @ query[0, 0] * 0.5).logsumexp(0)
    torch.testing.assert_close(lse, expected.view(1, 1))


def test_batches_are_rounded_up_to_few_sizes():
    assert [batch_bucket(n) for n in (1, 2, 3, 5, 9, 17, 25, 32, 33, 65)] == [
        *(1, 2, 4, 8, 16, 24, 32, 32, 48, 80)
    ]
