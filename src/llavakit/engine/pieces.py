"""Attention of one new token for each row, in static shapes: what a GPU can replay.

Everything a row sees lies in *pieces*, contiguous stretches of the arena: those of its
prefix, and its own segment. A step's pieces form a table [P, B] of starts and lengths; short
rows are filled up with pieces of length 0. One kernel attends to all P * B pieces at once and
gives the log-sum-exp of each one's scores, by which the P results of a row are merged
(flash-decoding, https://crfm.stanford.edu/2023/10/12/flashdecoding.html). Long pieces may be
cut for the same price, so that a small batch fills the device. Unlike ``attention``, rows that
share a prefix read it each for itself.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llavakit.engine.arena import KVArena
from llavakit.engine.attention import Row
from llavakit.engine.extents import Extent

log = logging.getLogger(__name__)

LEAST_PIECE = 128
"""Tokens. Shorter pieces are not worth a block of their own."""


@dataclass(frozen=True, slots=True)
class Pieces:
    """A step's pieces, N in all, as a kernel reads them.

    Attributes:
        queries: [N + 1] of int32: 0 to N, where each piece's query begins.
        starts: [N + 1] of int32: slots, in any order; the last one is not read.
        lengths: [N] of int32.
        longest: no piece is longer; a number of the host's.
    """

    queries: Tensor
    starts: Tensor
    lengths: Tensor
    longest: int


@dataclass(frozen=True, slots=True)
class Kernel:
    """A way to attend to pieces.

    Attributes:
        name: for the log.
        attend: (query [N, heads, dim], keys [slots, kv_heads, dim], values, pieces, scaling)
            -> (out [N, heads, dim], log-sum-exp [heads, N] in fp32). Pieces of length 0 may
            give anything.
        padded: whether it works in the shape of the longest piece.
    """

    name: str
    attend: Callable[[Tensor, Tensor, Tensor, Pieces, float], tuple[Tensor, Tensor]]
    padded: bool


def _varlen(
    query: Tensor, keys: Tensor, values: Tensor, pieces: Pieces, scaling: float
) -> tuple[Tensor, Tensor]:
    from torch.nn.attention.varlen import AuxRequest, varlen_attn

    # Flash attention takes a sequence's place from cu_seq_k and, if it is given, its length
    # from seqused_k alone. It does not say so: `working_kernel` tries it. Splitting is done
    # here, by cutting pieces, because its own heuristic looks at the bound and not at lengths.
    out: tuple[Tensor, Tensor] = varlen_attn(  # type: ignore[assignment]
        query,
        keys,
        values,
        pieces.queries,
        pieces.starts,
        1,
        pieces.longest,
        return_aux=AuxRequest(lse=True),
        scale=scaling,
        enable_gqa=query.shape[1] != keys.shape[1],
        seqused_k=pieces.lengths,
        num_splits=1,
    )
    return out


def _gathered(
    query: Tensor, keys: Tensor, values: Tensor, pieces: Pieces, scaling: float
) -> tuple[Tensor, Tensor]:
    count, heads, dim = query.shape
    places = torch.arange(pieces.longest, device=query.device)
    behind = places >= pieces.lengths[:, None]
    # A padded place reads the first slot of its piece, which was written, and is masked.
    slots = pieces.starts[:-1, None] + torch.where(behind, 0, places)
    grouped = (query * scaling).view(count, keys.shape[1], -1, dim)
    scores = torch.einsum("nkgd,nskd->nkgs", grouped, keys[slots]).float()
    scores = scores.masked_fill(behind[:, None, None], float("-inf"))
    total = scores.logsumexp(dim=-1)
    weights = torch.exp(scores - total[..., None]).to(values.dtype)
    out = torch.einsum("nkgs,nskd->nkgd", weights, values[slots])
    return out.reshape(count, heads, dim), total.view(count, heads).T


VARLEN = Kernel("varlen", _varlen, padded=False)
"""Flash attention (``torch.nn.attention.varlen``): fp16 and bf16, NVIDIA Ampere or newer."""
GATHERED = Kernel("gathered", _gathered, padded=True)
"""Pieces gathered and padded: any device and type, and the plain definition of the others."""


def merge(out: Tensor, lse: Tensor, lengths: Tensor) -> Tensor:
    """The attention over a row's pieces together, of that over each.

    Args:
        out: [P * B, heads, dim].
        lse: [heads, P * B].
        lengths: [P, B]; pieces of length 0 count for nothing, whatever their results are
            (flash attention gives them +inf).

    Returns:
        [B, heads, dim].
    """
    count, rows = lengths.shape
    empty = (lengths == 0)[..., None]
    scores = lse.T.reshape(count, rows, -1).masked_fill(empty, float("-inf"))
    weights = torch.softmax(scores, dim=0)[..., None]
    parts = out.view(count, rows, *out.shape[1:]).float().masked_fill(empty[..., None], 0)
    return (weights * parts).sum(dim=0).to(out.dtype)


class PieceAttention:
    """Stores one token of each row, then attends to the rows' pieces (see ``model.decoder``).

    Args:
        arena: on one device.
        slots: [B], where each row's new token belongs.
        starts, lengths: [P, B] of int32; every row has at least one token in all.
        longest: no piece is longer.
        kernel: does the work.
        merge: :func:`merge`, or a compiled form of it.
    """

    def __init__(
        self,
        arena: KVArena,
        slots: Tensor,
        starts: Tensor,
        lengths: Tensor,
        longest: int,
        kernel: Kernel,
        merge: Callable[[Tensor, Tensor, Tensor], Tensor] = merge,
    ) -> None:
        self._arena = arena
        self._slots = slots
        self._lengths = lengths
        self._kernel = kernel
        self._merge = merge
        self._pieces = Pieces(
            torch.arange(starts.numel() + 1, dtype=torch.int32, device=starts.device),
            torch.cat((starts.flatten(), starts[-1, -1:])),
            lengths.flatten(),
            longest,
        )

    def __call__(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> Tensor:
        keys = self._arena.keys[layer].transpose(0, 1)
        values = self._arena.values[layer].transpose(0, 1)
        keys.index_copy_(0, self._slots, key)
        values.index_copy_(0, self._slots, value)
        count = len(self._lengths)
        if count > 1:
            query = query.expand(count, *query.shape).flatten(0, 1)
        out, lse = self._kernel.attend(query, keys, values, self._pieces, scaling)
        return out if count == 1 else self._merge(out, lse, self._lengths)


def pieces_of(row: Row, count: int) -> list[Extent]:
    """What a row sees, in at most ``count`` pieces if its tree allows: the longest are cut."""
    pieces = [*row.prefix, Extent(row.slot, row.own)]
    while len(pieces) < count:
        longest = max(pieces, key=lambda piece: piece.length)
        half = longest.length // 2
        if half < LEAST_PIECE:
            break
        place = pieces.index(longest)
        rest = Extent(longest.start + half, longest.length - half)
        pieces[place : place + 1] = [Extent(longest.start, half), rest]
    return pieces


def working_kernel(
    heads: int,
    kv_heads: int,
    head_dim: int,
    dtype: torch.dtype,
    device: torch.device,
    kernels: Sequence[Kernel] = (VARLEN, GATHERED),
) -> Kernel | None:
    """The first kernel that gives the right numbers here; None if none does."""
    for kernel in kernels:
        try:
            errors = [
                _error(kernel, rows, heads, kv_heads, head_dim, dtype, device) for rows in (1, 3)
            ]
        except Exception as reason:  # whatever an op says that does not exist for this device
            log.info("%s attention does not run here: %s", kernel.name, str(reason)[:200])
            continue
        error = max(errors)
        if error < 10 * torch.finfo(dtype).eps:
            log.info("decode attends by %s, self-test error %.1e", kernel.name, error)
            return kernel
        log.warning("%s attention gives wrong numbers here (error %.1e)", kernel.name, error)
    return None


def _error(
    kernel: Kernel,
    rows: int,
    heads: int,
    kv_heads: int,
    dim: int,
    dtype: torch.dtype,
    device: torch.device,
) -> float:
    """The largest deviation from plain attention in fp32, for pieces in no order."""
    pieces = [[(700, 9), (130, 300), (5, 1)], [(450, 64), (3, 0), (700, 130)]]  # [P][B]
    extents = [level[:rows] for level in pieces]
    starts, lengths = torch.tensor(extents, dtype=torch.int32, device=device).unbind(-1)
    noise = torch.Generator().manual_seed(0)

    def some(*shape: int) -> Tensor:
        return torch.randn(shape, generator=noise).to(device, dtype)

    slots = [int(start + length) - 1 for start, length in extents[0]]
    arena = KVArena([device], 1000, kv_heads, dim, dtype=dtype)
    arena.keys[0].copy_(some(kv_heads, 1001, dim))
    arena.values[0].copy_(some(kv_heads, 1001, dim))
    query, key, value = (some(rows, count, dim) for count in (heads, kv_heads, kv_heads))
    places = torch.tensor(slots, device=device)
    attend = PieceAttention(arena, places, starts, lengths, 512, kernel)
    out = attend(0, query, key, value, dim**-0.5)
    worst = 0.0
    for row in range(rows):
        seen = [s for a, n in (level[row] for level in extents) for s in range(a, a + n)]
        worst = max(worst, _deviation(out[row], query[row], arena, seen, dim**-0.5))
    return worst


def _deviation(out: Tensor, query: Tensor, arena: KVArena, seen: Any, scaling: float) -> float:
    group = len(query) // len(arena.keys[0])
    keys = arena.keys[0][:, seen].float().repeat_interleave(group, dim=0)
    values = arena.values[0][:, seen].float().repeat_interleave(group, dim=0)
    weights = torch.softmax((keys @ query.float()[..., None])[..., 0] * scaling, dim=-1)
    right = (weights[:, None] @ values)[:, 0]
    error = float((out.float() - right).abs().max() / right.abs().max())
    return error if error == error else float("inf")
