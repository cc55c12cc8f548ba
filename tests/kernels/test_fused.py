from __future__ import annotations

import importlib.util
import logging
import os
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from llavakit.kernels import fused
from llavakit.kernels.fused import merge_splits, rotate_and_store

Function = Callable[..., Tensor]
TYPES = [torch.float32, torch.float16, torch.bfloat16]
ROUNDING = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
SPARE = 3
"""Slots that no token has."""


def arena(slots: int, heads: int, dim: int, dtype: torch.dtype, order: str) -> Tensor:
    """[slots, heads, dim] of sevens, with something beyond every head and slot."""
    if order == "tokens":
        return torch.full((slots + 1, heads + 1, dim + 3), 7.0, dtype=dtype)[1:, 1:, 3:]
    return torch.full((heads + 1, slots + 1, dim), 7.0, dtype=dtype)[1:, 1:].transpose(0, 1)


def rotation(
    tokens: int = 4,
    heads: int = 4,
    kv_heads: int = 2,
    dim: int = 16,
    dtype: torch.dtype = torch.float32,
    kept: torch.dtype = torch.float32,
    angles: torch.dtype = torch.float32,
    order: str = "heads",
    middle: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, int]:
    noise = torch.Generator().manual_seed(tokens * 1000 + heads * 100 + dim)
    mixed = torch.randn(tokens, heads + 2 * kv_heads, dim, generator=noise).to(dtype)
    turn = torch.rand(tokens, 1, dim // 2, generator=noise) * 6
    cos, sin = turn.cos().to(angles), turn.sin().to(angles)
    if not middle:
        cos, sin = cos[:, 0], sin[:, 0]
    slots = torch.randperm(tokens + SPARE, generator=noise)[:tokens]
    keys, values = (arena(tokens + SPARE, kv_heads, dim, kept, order) for _ in "kv")
    return mixed, cos, sin, keys, values, slots, heads


def turned(row: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """One head of one token, in double precision, pair by pair."""
    result, half = torch.empty(len(row), dtype=torch.float64), len(row) // 2
    for channel in range(half):
        first, second = float(row[channel]), float(row[half + channel])
        c, s = float(cos.flatten()[channel]), float(sin.flatten()[channel])
        result[channel] = first * c - second * s
        result[half + channel] = second * c + first * s
    return result


def near(found: Tensor, right: Tensor, *steps: torch.dtype) -> bool:
    """Whether the numbers agree as far as the types allow in which they were computed."""
    allowed = sum(ROUNDING[step] for step in steps)
    return bool(((found.double() - right.double()).abs() <= allowed * (1 + right.abs())).all())


def check_rotation(function: Function, *arguments: Tensor | int) -> None:
    mixed, cos, sin, keys, values, slots, heads = arguments
    kv_heads = keys.shape[1]
    query = function(*arguments)
    assert query.shape == (len(mixed), heads, mixed.shape[2]) and query.is_contiguous()
    assert query.dtype == mixed.dtype
    for token, slot in enumerate(slots.tolist()):
        for head in range(heads):
            right = turned(mixed[token, head], cos[token], sin[token])
            assert near(query[token, head], right, mixed.dtype)
        for head in range(kv_heads):
            right = turned(mixed[token, heads + head], cos[token], sin[token])
            assert near(keys[slot, head], right, mixed.dtype, keys.dtype)
            value = mixed[token, heads + kv_heads + head]
            if values.dtype in (mixed.dtype, torch.float32):
                assert torch.equal(values[slot, head], value.to(values.dtype))
            # Triton's interpreter cuts off where the kernel rounds.
            assert near(values[slot, head], value, values.dtype)
    # Everything else in the arena is as it was, beyond its heads and channels, too.
    for kept in (keys, values):
        kept[slots] = 7
        whole = torch.empty(0, dtype=kept.dtype).set_(kept.untyped_storage())
        assert bool((whole == 7).all())


ROTATIONS = {
    "tokens": st.integers(0, 4),
    "heads": st.integers(1, 6),
    "kv_heads": st.integers(1, 3),
    "dim": st.sampled_from([2, 6, 16, 40]),
    "dtype": st.sampled_from(TYPES),
    "kept": st.sampled_from(TYPES),
    "angles": st.sampled_from(TYPES),
    "order": st.sampled_from(["tokens", "heads"]),
    "middle": st.booleans(),
}


@settings(max_examples=60, deadline=None)
@given(shape=st.fixed_dictionaries(ROTATIONS))
def test_queries_are_turned_and_keys_and_values_kept(shape):
    check_rotation(rotate_and_store, *rotation(**shape))


def as_transformers_does(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    from transformers.models.llama.modeling_llama import rotate_half

    cos, sin = torch.cat((cos, cos), dim=-1), torch.cat((sin, sin), dim=-1)
    return heads * cos + rotate_half(heads) * sin


@pytest.mark.parametrize("dtype", TYPES)
def test_turns_bit_for_bit_as_the_decoder_does(dtype):
    from llavakit.model.decoder import rotate  # the very one: neither may drift

    mixed, cos, sin, keys, values, slots, heads = rotation(dtype=dtype, kept=dtype, angles=dtype)
    right = rotate(mixed[:, :6], cos, sin)
    assert torch.equal(right, as_transformers_does(mixed[:, :6], cos, sin))
    query = rotate_and_store(mixed, cos, sin, keys, values, slots, heads)
    assert torch.equal(query, right[:, :4]) and torch.equal(keys[slots], right[:, 4:])


def test_shapes_that_do_not_fit_are_told():
    mixed, cos, sin, keys, values, slots, heads = rotation()
    apart = keys.transpose(1, 2).contiguous().transpose(1, 2)
    for wrong in (
        (mixed, cos, sin, keys, values, slots, heads + 1),
        (mixed.transpose(0, 1).contiguous().transpose(0, 1), cos, sin, keys, values, slots, heads),
        (mixed, cos[..., :4], sin[..., :4], keys, values, slots, heads),
        (mixed, cos, sin[:1], keys, values, slots, heads),
        (mixed, cos, sin, keys, values[1:], slots, heads),
        (mixed, cos, sin, apart, values, slots, heads),
        (mixed, cos, sin, keys, values, slots[1:], heads),
        (mixed, cos, sin, keys, values, slots.int(), heads),
    ):
        with pytest.raises(ValueError, match=r"."):
            rotate_and_store(*wrong)
    out, lse, parts = merging()
    for wrong in (
        (out, lse.t(), parts),
        (out, lse.double(), parts),
        (out, lse, parts[:, :0]),
        (out, lse, parts[0]),
        (out, lse, parts.float()),
    ):
        with pytest.raises(ValueError, match=r"."):
            merge_splits(*wrong)


def merging(
    tokens: int = 4,
    heads: int = 3,
    dim: int = 40,
    most: int = 4,
    dtype: torch.dtype = torch.float32,
    places: torch.dtype = torch.int64,
    seed: int = 0,
    lse_order: str = "heads",
) -> tuple[Tensor, Tensor, Tensor]:
    """Parts in any order, between rows of NaN that nobody uses; some are empty."""
    noise = torch.Generator().manual_seed(seed)
    rows = 2 * tokens * most + 1
    out = torch.randn(rows, heads, dim, generator=noise).to(dtype)
    lse = torch.randn(heads, rows, generator=noise) * 3 + 100
    lse = lse.t().contiguous().t() if lse_order == "rows" else lse
    empty = torch.rand(heads, rows, generator=noise) < 0.2
    lse[empty], out[empty.t()] = -torch.inf, torch.nan
    parts = torch.randperm(rows, generator=noise)[: tokens * most].view(tokens, most)
    missing = torch.rand(tokens, most, generator=noise) < 0.4
    missing[torch.arange(tokens), torch.randint(most, (tokens,), generator=noise)] = False
    parts[missing] = -1
    unused = torch.ones(rows, dtype=torch.bool)
    unused[parts[parts >= 0]] = False
    out[unused] = torch.nan
    lse[:, unused] = torch.tensor([torch.nan, torch.inf]).repeat(rows)[: int(unused.sum())]
    return out, lse, parts.to(places)


def merged_by_hand(out: Tensor, lse: Tensor, parts: Tensor) -> Tensor:
    result = torch.zeros(len(parts), *out.shape[1:], dtype=torch.float64)
    for token, row in enumerate(parts.tolist()):
        for head in range(out.shape[1]):
            used = [place for place in row if place >= 0 and lse[head, place] != -torch.inf]
            top = max((float(lse[head, place]) for place in used), default=0.0)
            weights = [(lse[head, place].double() - top).exp() for place in used]
            for place, weight in zip(used, weights, strict=True):
                result[token, head] += weight / sum(weights) * out[place, head].double()
    return result


def check_merge(function: Function, out: Tensor, lse: Tensor, parts: Tensor) -> None:
    merged = function(out, lse, parts)
    assert merged.shape == (len(parts), *out.shape[1:]) and merged.is_contiguous()
    assert merged.dtype == out.dtype
    assert near(merged, merged_by_hand(out, lse, parts), out.dtype)


MERGES = {
    "tokens": st.integers(0, 4),
    "heads": st.integers(1, 4),
    "dim": st.sampled_from([8, 40]),
    "most": st.sampled_from([1, 2, 3, 7, 32]),
    "dtype": st.sampled_from(TYPES),
    "places": st.sampled_from([torch.int32, torch.int64]),
    "seed": st.integers(0, 100),
    "lse_order": st.sampled_from(["heads", "rows"]),
}


@settings(max_examples=60, deadline=None)
@given(shape=st.fixed_dictionaries(MERGES))
def test_parts_weigh_as_much_as_their_scores(shape):
    check_merge(merge_splits, *merging(**shape))


def test_merged_parts_are_the_attention_over_all():
    noise = torch.Generator().manual_seed(1)
    scores = torch.randn(2, 9, generator=noise) * 4  # [heads, keys]
    values = torch.randn(9, 2, 8, generator=noise)
    cuts = [scores[:, :4], scores[:, 4:8], scores[:, 8:]]
    lse = torch.stack([cut.logsumexp(-1) for cut in cuts], dim=1)
    seen = [
        torch.einsum("hk,khd->hd", cut.softmax(-1), value)
        for cut, value in zip(cuts, values.split(4), strict=True)
    ]
    right = torch.einsum("hk,khd->hd", scores.softmax(-1), values)
    merged = merge_splits(torch.stack(seen), lse, torch.tensor([[2, -1, 0, 1]]))
    torch.testing.assert_close(merged[0], right)


def check_all_empty(function: Function) -> None:
    out, lse, parts = merging()
    lse[:, parts[1].clamp(min=0)] = -torch.inf
    merged = function(out, lse, parts)
    assert bool((merged[1] == 0).all())
    out[parts[0].max(), 1, 2], lse[1, parts[0].max()] = torch.nan, 100.0
    merged = function(out, lse, parts)
    assert merged[0].isnan().nonzero().tolist() == [[1, 2]]  # a real NaN is not hidden


def test_only_empty_parts_give_zeros_and_a_nan_in_a_used_row_stays():
    check_all_empty(merge_splits)


OPERATORS = torch.ops.llavakit


@pytest.mark.parametrize("order", ["tokens", "heads"])
@pytest.mark.parametrize("tokens", [1, 3])
def test_are_operators_as_torch_wants_them(order, tokens):
    arguments = rotation(tokens=tokens, dtype=torch.bfloat16, order=order)
    torch.library.opcheck(OPERATORS.rotate_and_store.default, arguments)
    arguments = merging(tokens=tokens)
    finite = [one.nan_to_num() for one in arguments]  # it compares by ==
    torch.library.opcheck(OPERATORS.merge_splits.default, tuple(finite))


class Counted(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_each_is_one_operator(mode):
    arguments, parts = rotation(), merging()
    with mode():
        inside = rotation()
        for each in (arguments, inside):
            with Counted() as counted:
                rotate_and_store(*each)
                merge_splits(*parts)
            assert counted.seen == [
                "llavakit.rotate_and_store.default",
                "llavakit.merge_splits.default",
            ]
        check_rotation(rotate_and_store, *inside)


def test_are_traced_whole():
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph, examples):
        graphs.append(graph)
        return graph.forward

    def both(*arguments):
        return rotate_and_store(*arguments[:7]) * 1, merge_splits(*arguments[7:])

    parts = merging()
    right = merge_splits(*parts)
    whole = torch.compile(both, fullgraph=True, backend=backend)
    check_rotation(lambda *given: whole(*given, *parts)[0], *rotation())
    assert torch.equal(whole(*rotation(), *parts)[1], right)
    torch.compile(both, fullgraph=True, backend="eager")(*rotation(), *parts)
    assert len(graphs) == 1
    called = [node for node in graphs[0].graph.nodes if node.op == "call_function"]
    assert [str(node.target) for node in called[:1]] == ["llavakit.rotate_and_store.default"]


@pytest.mark.parametrize("dtype", TYPES)
def test_shapes_are_known_without_numbers(dtype):
    *tensors, heads = rotation(dtype=dtype)
    query = rotate_and_store(*(one.to("meta") for one in tensors), heads)
    assert (query.shape, query.dtype, query.device.type) == ((4, 4, 16), dtype, "meta")
    merged = merge_splits(*(one.to("meta") for one in merging(dtype=dtype)))
    assert (merged.shape, merged.dtype, merged.device.type) == ((4, 3, 40), dtype, "meta")
    assert query.is_contiguous() and merged.is_contiguous()


@pytest.fixture
def untried(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Triton has not failed yet."""
    monkeypatch.setattr(fused._Fastest, "triton", True)
    yield


def test_triton_that_fails_is_replaced_by_torch_with_one_warning(untried, monkeypatch, caplog):
    calls = []

    def fail(*arguments):
        calls.append(arguments)
        raise RuntimeError("no C compiler")

    broken = types.SimpleNamespace(rotate_and_store=fail, merge_splits=fail)
    monkeypatch.setitem(sys.modules, "llavakit.kernels.fused_triton", broken)
    monkeypatch.setattr("llavakit.kernels.fused_triton", broken, raising=False)
    with caplog.at_level(logging.WARNING, logger="llavakit"):
        rotate = fused._Fastest("rotate_and_store", fused.rotate_and_store_in_torch)
        for _ in range(2):
            check_rotation(rotate, *rotation())
        check_merge(fused._Fastest("merge_splits", fused.merge_splits_in_torch), *merging())
    assert len(calls) == 1 and len(caplog.records) == 1
    assert "no C compiler" in caplog.text


def test_where_triton_is_not_built_nothing_is_warned_of(untried, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "llavakit.kernels.fused_triton", raising=False)
    with caplog.at_level(logging.WARNING, logger="llavakit"):
        check_merge(fused._Fastest("merge_splits", fused.merge_splits_in_torch), *merging())
    assert not caplog.records


def test_memory_that_is_full_is_not_taken_for_a_fault_of_triton(untried, monkeypatch):
    def full(*arguments):
        raise torch.OutOfMemoryError("full")

    broken = types.SimpleNamespace(merge_splits=full)
    monkeypatch.setitem(sys.modules, "llavakit.kernels.fused_triton", broken)
    monkeypatch.setattr("llavakit.kernels.fused_triton", broken, raising=False)
    with pytest.raises(torch.OutOfMemoryError):
        fused._Fastest("merge_splits", fused.merge_splits_in_torch)(*merging())
    assert fused._Fastest.triton


needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="no Triton here"
)


def in_own_process(function: Callable[[], None], tmp_path: Path, **variables: str) -> None:
    """Triton reads its settings when it is imported."""
    code = f"from tests.kernels.test_fused import {function.__name__} as run; run()"
    paths = os.pathsep.join(path or "." for path in sys.path)
    environment = {
        **os.environ,
        **variables,
        "PYTHONPATH": paths,
        "TRITON_CACHE_DIR": str(tmp_path),
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_importing_does_not_import_triton():
    code = (
        "import sys, llavakit.kernels.fused;"
        "assert 'llavakit.kernels.fused_triton' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def interpret() -> None:
    """Run the kernels on a processor, in Triton's interpreter."""
    from llavakit.kernels import fused_triton

    shapes: list[dict] = [
        {},
        {"tokens": 0},
        {"tokens": 1, "heads": 1, "kv_heads": 1, "dim": 2, "order": "tokens"},
        {"heads": 5, "kv_heads": 3, "dim": 40, "order": "tokens", "middle": False},
        {"tokens": 2, "heads": 6, "kv_heads": 1, "dim": 80, "angles": torch.bfloat16},
    ]
    shapes += [{"tokens": 2, "dtype": one, "kept": two} for one in TYPES for two in TYPES]
    for shape in shapes:
        arguments = rotation(**shape)
        check_rotation(fused_triton.rotate_and_store, *arguments)
        again = rotation(**shape)
        right = rotate_and_store(*again)
        assert near(fused_triton.rotate_and_store(*arguments), right, arguments[0].dtype)
        for found, kept in zip(arguments[3:5], again[3:5], strict=True):
            assert near(found, kept, arguments[0].dtype, kept.dtype)
    mixed, cos, sin, keys, values, slots, heads = rotation()
    slots[1], slots[2] = -1, len(keys)  # outside: nothing is written there
    fused_triton.rotate_and_store(mixed, cos, sin, keys, values, slots, heads)
    inside = slots[[0, 3]]
    assert bool((keys[inside] != 7).all())
    keys[inside] = 7
    assert bool((torch.empty(0).set_(keys.untyped_storage()) == 7).all())

    merges: list[dict] = [
        {"tokens": 0},
        {"tokens": 1, "heads": 1, "dim": 8, "most": 1},
        {"heads": 1, "dim": 80, "most": 3, "lse_order": "rows"},
        {"tokens": 2, "dim": 256, "most": 32},
    ]
    merges += [{"seed": n, "dtype": one} for n, one in enumerate(TYPES)]
    merges += [{"seed": 5, "places": torch.int32, "most": 7}]
    for shape in merges:
        parts = merging(**shape)
        check_merge(fused_triton.merge_splits, *parts)
        assert near(fused_triton.merge_splits(*parts), merge_splits(*parts), parts[0].dtype)
    check_all_empty(fused_triton.merge_splits)


NAMES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}


def compile_all() -> None:
    """Compile the kernels to the end for GPUs of several makes; none need be here."""
    import triton
    from triton.backends.compiler import GPUTarget

    from llavakit.kernels import fused_triton

    def compiled(kernel, target: GPUTarget, kinds: list[str], warps: int, **fixed: int) -> None:
        free = [name for name in kernel.arg_names if name not in fixed]
        kinds += ["i32"] * (len(free) - len(kinds))
        signature = dict(zip(free, kinds, strict=True)) | dict.fromkeys(fixed, "constexpr")
        source = triton.compiler.ASTSource(kernel, signature, fixed)
        assert triton.compile(source, target=target, options={"num_warps": warps}).asm

    for number, dtype in enumerate(TYPES):
        mine, kept = NAMES[dtype], NAMES[TYPES[number - 1]]
        target = GPUTarget("cuda", (75, 80, 90)[number], 32)
        kinds = [f"*{one}" for one in (mine, "fp32", mine, kept, kept, "i64", mine)]
        sizes = {"HEADS": 32, "KV_HEADS": 8, "HALF": 40, "BLOCK_HEADS": 4, "BLOCK_HALF": 64}
        compiled(fused_triton._rotate_and_store, target, kinds, 1, **sizes)
        kinds = [f"*{one}" for one in (mine, "fp32", ("i32", "i64")[number % 2], mine)]
        for parts, dim, block, warps in ((1, 40, 64, 1), (32, 256, 256, 4)):
            sizes = {"DIM": dim, "BLOCK_SPLITS": parts, "BLOCK_DIM": block}
            compiled(fused_triton._merge_splits, target, kinds, warps, **sizes)


@needs_triton
def test_kernels_compute_what_torch_does(tmp_path):
    in_own_process(interpret, tmp_path, TRITON_INTERPRET="1")


@needs_triton
def test_kernels_compile_for_gpus_that_are_not_here(tmp_path):
    in_own_process(compile_all, tmp_path, TRITON_INTERPRET="0")
