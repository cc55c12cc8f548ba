"""Attention of a packed pass over splits of the arena: the calls, and the kernels that take them.

Everything a token sees lies in *splits*, contiguous stretches of the arena (see ``layout``). A
kernel attends to any number of stretches at once and gives the log-sum-exp of each result, by which
those of a token are merged. Prefill, decode and mixtures of them go the same way.

- ``VARLEN`` is flash attention, called below ``torch.nn.attention.varlen``, whose wrapper lacks
  grouped heads and used lengths in torch 2.11.
- ``GATHERED`` needs no library and can be captured, and takes stretches of one query.
- ``LOOPED`` takes any, on any device, one stretch after the other; it reads its integers on the
  host and is the reference definition of the other two.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from llavakit.engine.extents import Extent
from llavakit.engine.layout import CallLayout, Row, lay_out
from llavakit.engine.looped import attend_stretches
from llavakit.engine.transfer import to_device
from llavakit.kernels.fused import merge_splits

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class AttentionCall:
    """One attention call's stretches, N in all, as a kernel reads them.

    Attributes:
        queries: [N + 1] of int32, where each stretch's queries begin; the last one is their number.
        starts: [N + 1] of int32: slots, in any order; the last one is not read.
        lengths: [N] of int32.
        most: queries that a stretch has at most; on the host, as the next one.
        longest: slots that a stretch has at most.
        causal: whether a stretch's last query sees all of it, the one before one slot less.
        gather: [Q], the queries' places in the pass; None where they are the pass.
        stretches: the same on the host, see :class:`llavakit.engine.layout.CallLayout`; None
            where only the device knows.
    """

    queries: Tensor
    starts: Tensor
    lengths: Tensor
    most: int
    longest: int
    causal: bool
    gather: Tensor | None = None
    stretches: Tensor | None = None


Attend = Callable[[Tensor, Tensor, Tensor, AttentionCall, float], tuple[Tensor, Tensor]]


@dataclass(frozen=True, slots=True)
class Kernel:
    """A way to attend to stretches.

    Attributes:
        name: its name in the log and ``stats()``.
        attend: (query [Q, heads, dim], keys [slots, kv_heads, dim], values, call, scaling)
            -> (out [Q, heads, dim], log-sum-exp [heads, Q] in fp32). Stretches of length 0 may
            give anything.
        padded: whether it works in the shape of the longest stretch.
        static: whether it reads nothing but bounds from the host, and so can be captured.
        several: whether a stretch may have several queries.
    """

    name: str
    attend: Attend
    padded: bool = False
    static: bool = True
    several: bool = True


@functools.cache
def _has_splits() -> bool:
    schema = torch.ops.aten._flash_attention_forward.default._schema
    return "num_splits" in [argument.name for argument in schema.arguments]


def _varlen(
    query: Tensor, keys: Tensor, values: Tensor, call: AttentionCall, scaling: float
) -> tuple[Tensor, Tensor]:
    # A stretch's place is taken from cum_seq_k and its length from seqused_k alone, which is
    # documented nowhere: `error_of` tests it. Splitting is done by cutting (see `layout`),
    # because its own heuristic looks at the bound and not at lengths.
    splits = {"num_splits": 1} if _has_splits() else {}
    found = torch.ops.aten._flash_attention_forward(
        *(query, keys, values, call.queries, call.starts, call.most, call.longest),
        *(0.0, call.causal, False),
        scale=scaling,
        seqused_k=call.lengths,
        **splits,
    )
    out: Tensor = found[0]
    lse: Tensor = found[1]
    return out, lse


def _gathered(
    query: Tensor, keys: Tensor, values: Tensor, call: AttentionCall, scaling: float
) -> tuple[Tensor, Tensor]:
    assert call.most == 1, "only stretches of one query are gathered"
    count, heads, dim = query.shape
    places = torch.arange(call.longest, device=query.device)
    behind = places >= call.lengths[:, None]
    # A padded place reads the first slot of its stretch, which was written, and is masked.
    slots = call.starts[:-1, None] + torch.where(behind, 0, places)
    grouped = (query * scaling).view(count, keys.shape[1], -1, dim)
    scores = torch.einsum("nkgd,nskd->nkgs", grouped, keys[slots].to(query.dtype)).float()
    scores = scores.masked_fill(behind[:, None, None], float("-inf"))
    total = scores.logsumexp(dim=-1)
    weights = torch.exp(scores - total[..., None]).to(query.dtype)
    out = torch.einsum("nkgs,nskd->nkgd", weights, values[slots].to(query.dtype))
    return out.reshape(count, heads, dim), total.view(count, heads).T


def _looped(
    query: Tensor, keys: Tensor, values: Tensor, call: AttentionCall, scaling: float
) -> tuple[Tensor, Tensor]:
    assert call.stretches is not None, "these stretches are known to the device alone"
    stretches, causal = call.stretches, call.causal
    found: tuple[Tensor, Tensor] = attend_stretches(query, keys, values, stretches, causal, scaling)
    return found


VARLEN = Kernel("flash (varlen)", _varlen)
"""Flash attention: fp16 and bf16, NVIDIA Ampere or newer."""
GATHERED = Kernel("gathered", _gathered, padded=True, several=False)
"""Stretches gathered and padded: any device and type, for steps that only decode."""
LOOPED = Kernel("looped", _looped, static=False)
"""One stretch after the other: any device, type and pass."""


def attention_call(layout: CallLayout, device: torch.device) -> AttentionCall:
    """Put a call's integers on a device, in one copy."""
    stretches = layout.stretches
    count = len(stretches)
    packed = np.empty(3 * count + 2, dtype=np.int32)
    queries, starts, lengths = packed[: count + 1], packed[count + 1 : -count], packed[-count:]
    queries[:-1], queries[-1] = stretches[:, 0], stretches[:, 1].sum()
    starts[:-1], starts[-1] = stretches[:, 2], stretches[-1, 2]
    lengths[:] = stretches[:, 3]
    there = to_device(torch.from_numpy(packed), device)
    gather = None
    if layout.gather is not None:
        gather = to_device(torch.from_numpy(layout.gather), device)
    return AttentionCall(
        *(there[: count + 1], there[count + 1 : -count], there[-count:]),
        *(int(stretches[:, 1].max()), int(lengths.max()), layout.causal),
        *(gather, torch.from_numpy(stretches)),
    )


ROWS = (
    Row((Extent(130, 300), Extent(5, 1)), 700, 8, 1),
    Row((Extent(130, 300),), 450, 63, 1),
    Row((), 720, 129, 1),
)
"""Rows of the self-test: in no order, one shared stretch, one of a single slot."""
PREFILLS = (Row((), 20, 0, 37), Row((Extent(130, 35), Extent(5, 1)), 500, 11, 150))
LARGEST_SLOT = 900


def working_kernel(
    heads: int,
    kv_heads: int,
    head_dim: int,
    dtype: torch.dtype,
    device: torch.device,
    kernels: Sequence[Kernel] = (VARLEN, GATHERED),
    refused: dict[str, str] | None = None,
) -> Kernel | None:
    """Return the first kernel that gives the right numbers here; None if none does.

    Args:
        heads, kv_heads, head_dim, dtype: shape and type of the model's attention.
        device: where it computes.
        kernels: the best one first.
        refused: filled with the names of those that were passed over, and why.
    """
    for kernel in kernels:
        reason: str | None
        try:
            reason = _fault(kernel, heads, kv_heads, head_dim, dtype, device)
            level = logging.WARNING
        except Exception as error:  # whatever an op raises that does not exist for this device
            reason, level = f"does not run here: {str(error)[:200]}", logging.INFO
        if reason is None:
            return kernel
        log.log(level, "%s attention %s", kernel.name, reason)
        if refused is not None:
            refused[kernel.name] = reason
    return None


def _fault(
    kernel: Kernel, heads: int, kv_heads: int, dim: int, dtype: torch.dtype, device: torch.device
) -> str | None:
    """What is wrong with a kernel's numbers, or None."""
    limit = 1e-5 if dtype == torch.float32 else 10 * torch.finfo(dtype).eps
    passes: list[Sequence[Row]] = [ROWS[:1], ROWS]
    if kernel.several:
        passes += [PREFILLS[:1], (*ROWS, *PREFILLS)]
    for rows in passes:
        error = error_of(kernel, rows, (heads, kv_heads, dim), dtype, device)
        if not error < limit:
            return f"gives wrong numbers here (error {error:.1e})"
        log.info("%s attention, self-test error %.1e", kernel.name, error)
    return None


def error_of(
    kernel: Kernel,
    rows: Sequence[Row],
    shape: tuple[int, int, int],
    dtype: torch.dtype,
    device: torch.device,
) -> float:
    """Return the largest deviation from attention in fp64, as a share of the largest number.

    Args:
        kernel: to try.
        rows: a pass.
        shape: heads, key heads, channels of a head.
        dtype, device: type and device of keys and queries.
    """
    heads, kv_heads, dim = shape
    noise = torch.Generator().manual_seed(0)
    total = sum(row.count for row in rows)

    def some(*shape: int) -> Tensor:
        return torch.randn(shape, generator=noise).to(dtype)

    keys, values = some(LARGEST_SLOT, kv_heads, dim), some(LARGEST_SLOT, kv_heads, dim)
    query = some(total, heads, dim)
    layout = lay_out(rows)
    asked, k, v = (one.to(device) for one in (query, keys, values))
    results = []
    for one in layout.calls:
        call = attention_call(one, device)
        gathered = asked if call.gather is None else asked[call.gather]
        results.append(kernel.attend(gathered, k, v, call, dim**-0.5))
    out = torch.cat([one for one, _ in results])
    if layout.parts is not None:
        lse = torch.cat([one for _, one in results], dim=1)
        out = merge_splits(out, lse, torch.from_numpy(layout.parts).to(device))
    right = _right(query, keys, values, rows, dim**-0.5)
    error = float((out.cpu().double() - right).abs().max() / right.abs().max())
    return error if error == error else float("inf")


def _right(
    query: Tensor, keys: Tensor, values: Tensor, rows: Sequence[Row], scaling: float
) -> Tensor:
    """Attention of each token in fp64, [T, heads, dim]."""
    group = query.shape[1] // keys.shape[1]
    keys, values = (one.double().repeat_interleave(group, dim=1) for one in (keys, values))
    out, place = [], 0
    for row in rows:
        before = [slot for extent in row.prefix for slot in range(extent.start, extent.end)]
        for number in range(row.count):
            seen = [*before, *range(row.slot, row.slot + row.start + number + 1)]
            scores = torch.einsum("shd,hd->hs", keys[seen], query[place].double()) * scaling
            out.append(torch.einsum("hs,shd->hd", scores.softmax(dim=-1), values[seen]))
            place += 1
    return torch.stack(out)
