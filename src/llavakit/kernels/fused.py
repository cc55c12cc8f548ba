"""Two steps of a decoder's attention on a GPU, each as one operator.

Each is defined in torch, for any device, and is one Triton kernel on CUDA where Triton works. As
custom operators they are opaque to ``torch.compile``, which neither splits nor copies the arena,
and count as one operator each; Triton is looked for when the first CUDA tensor arrives.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

log = logging.getLogger(__name__)


def rotate_and_store(
    mixed: Tensor,
    cos: Tensor,
    sin: Tensor,
    keys: Tensor,
    values: Tensor,
    slots: Tensor,
    heads: int,
) -> Tensor:
    """Turn queries and keys by their places' angles; keep the keys and values in the arena.

    Rotary positions over all channels (RoFormer, https://arxiv.org/abs/2104.09864) in Llama's
    order: channel c is paired with channel c + dim / 2. In torch it is computed in the type of
    ``mixed``, operation by operation, as the decoder does; in Triton in fp32, rounded once.

    Args:
        mixed: queries, keys and values of each token, [T, heads + 2 kv_heads, dim], contiguous.
        cos, sin: of each token's angles, [T, dim / 2] or [T, 1, dim / 2], in any float type.
        keys, values: one layer of the arena, [slots, kv_heads, dim], whose channels lie side by
            side, in any float type; rows ``slots`` are overwritten.
        slots: where each token belongs, [T] int64, each inside the arena (in Triton, one outside
            it is not written; in torch it is an error). Where several tokens have the same slot,
            any of them may remain.
        heads: of the queries.

    Returns:
        The turned queries, [T, heads, dim], contiguous, in the type of ``mixed``.
    """
    tokens, every, dim = mixed.shape
    if not mixed.is_contiguous() or every != heads + 2 * keys.shape[1]:
        raise ValueError(f"no {heads} + 2 * {keys.shape[1]} contiguous heads: {mixed.shape}")
    if keys.shape[2] != dim or values.shape != keys.shape:
        raise ValueError(f"heads of {dim} channels are kept in {keys.shape}, {values.shape}")
    if keys.stride(-1) != 1 or values.stride(-1) != 1:
        raise ValueError("a head's channels lie apart in the arena")
    for angles in (cos, sin):
        if angles.shape not in ((tokens, dim // 2), (tokens, 1, dim // 2)) or dim % 2:
            raise ValueError(f"{tokens} tokens of {dim} channels turn by {angles.shape}")
    if slots.shape != (tokens,) or slots.dtype != torch.int64:
        raise ValueError(f"{tokens} tokens go to slots {slots.shape} in {slots.dtype}")
    return _rotate_and_store(mixed, cos, sin, keys, values, slots, heads)  # type: ignore[no-any-return]


def merge_parts(out: Tensor, lse: Tensor, parts: Tensor) -> Tensor:
    """Put together the attention over several parts of what a token reads, in fp32.

    The last step of flash-decoding (https://crfm.stanford.edu/2023/10/12/flashdecoding.html):
    parts weigh as much as the sums of their exponentiated scores.

    Args:
        out: attention over each part alone, [N, heads, dim].
        lse: log of each part's sum of exponentiated scores, [heads, N] fp32; -inf is an empty
            part, which counts for nothing, whatever its row in ``out`` holds.
        parts: places in N of each token's parts, [T, P] int32 or int64, at least one; -1 where a
            token has fewer. (Others outside N count for nothing in Triton, too; in torch they
            are errors.)

    Returns:
        [T, heads, dim] in the type of ``out``; zeros where all parts are empty.
    """
    count, heads, _ = out.shape
    if lse.shape != (heads, count) or lse.dtype != torch.float32:
        raise ValueError(f"scores {lse.shape} in {lse.dtype} do not belong to {out.shape}")
    if parts.dim() != 2 or not parts.shape[1] or parts.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"no places of parts: {parts.shape} in {parts.dtype}")
    return _merge_parts(out, lse, parts)  # type: ignore[no-any-return]


def computed_by(device: torch.device) -> str:
    """``"triton"`` or ``"torch"``: what these operators run in there, as far as is known yet."""
    return "triton" if device.type == "cuda" and _Fastest.triton else "torch"


def rotate_and_store_in_torch(
    mixed: Tensor,
    cos: Tensor,
    sin: Tensor,
    keys: Tensor,
    values: Tensor,
    slots: Tensor,
    heads: int,
) -> Tensor:
    """Define :func:`rotate_and_store`, of whose shapes everything is here."""
    shape = (len(mixed), 1, mixed.shape[-1] // 2)
    cos, sin = (angles.reshape(shape).to(mixed.dtype) for angles in (cos, sin))
    kept = keys.shape[1]
    query, key, value = torch.split(mixed, [heads, kept, kept], dim=1)
    keys.index_copy_(0, slots, rotate(key, cos, sin).to(keys.dtype))
    values.index_copy_(0, slots, value.to(values.dtype))
    return rotate(query, cos, sin)


def rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn [T, heads, dim] by each token's angles [T, 1, dim / 2]."""
    first, second = heads.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def merge_parts_in_torch(out: Tensor, lse: Tensor, parts: Tensor) -> Tensor:
    """Define :func:`merge_parts`, of whose shapes everything is here."""
    missing = parts < 0
    places = parts.clamp(min=0).long()
    scores = lse.t()[places]  # [T, P, heads]
    empty = missing[..., None] | (scores == -torch.inf)
    weights = scores.masked_fill(empty, -torch.inf).softmax(dim=1)
    # Softmax over nothing is NaN, and so may be a row that nobody computed: 0 * NaN is NaN.
    weights = weights.masked_fill(empty, 0)
    rows = out[places].float().masked_fill(empty[..., None], 0)
    return (weights[..., None] * rows).sum(dim=1).to(out.dtype)


class _Fastest:
    """An operator by Triton; all of them in torch from the first time that Triton fails.

    Args:
        name: of the function in :mod:`llavakit.kernels.fused_triton`.
        in_torch: the same work.
    """

    triton = True

    def __init__(self, name: str, in_torch: Callable[..., Tensor]) -> None:
        self._name, self._in_torch = name, in_torch

    def __call__(self, *arguments: Tensor | int) -> Tensor:
        if _Fastest.triton:
            try:
                return self._in_triton(*arguments)
            except torch.OutOfMemoryError:
                raise
            # A compiler that is missing or fails has many ways to say so, and has written
            # nothing yet: the same arguments are good for torch.
            except Exception as error:
                _Fastest.triton = False
                # Triton itself has no build for some systems, which is no news.
                missing = isinstance(error, ModuleNotFoundError)
                level = logging.INFO if missing else logging.WARNING
                log.log(level, "no Triton here; torch computes instead of it", exc_info=not missing)
        return self._in_torch(*arguments)

    def _in_triton(self, *arguments: Tensor | int) -> Tensor:
        from llavakit.kernels import fused_triton

        result: Tensor = getattr(fused_triton, self._name)(*arguments)
        return result


_rotate_and_store = torch.library.custom_op(
    "llavakit::rotate_and_store", rotate_and_store_in_torch, mutates_args=("keys", "values")
)
_merge_parts = torch.library.custom_op(
    "llavakit::merge_parts", merge_parts_in_torch, mutates_args=()
)
_rotate_and_store.register_kernel("cuda", _Fastest("rotate_and_store", rotate_and_store_in_torch))
_merge_parts.register_kernel("cuda", _Fastest("merge_parts", merge_parts_in_torch))


@_rotate_and_store.register_fake
def _rotated_shape(
    mixed: Tensor,
    cos: Tensor,
    sin: Tensor,
    keys: Tensor,
    values: Tensor,
    slots: Tensor,
    heads: int,
) -> Tensor:
    return mixed.new_empty((mixed.shape[0], heads, mixed.shape[2]))


@_merge_parts.register_fake
def _merged_shape(out: Tensor, lse: Tensor, parts: Tensor) -> Tensor:
    return out.new_empty((parts.shape[0], *out.shape[1:]))
