"""Compare a decoder with transformers' own forward, the way the engine will run it.

Two sequences are computed in several passes, mixed: a prompt in two chunks, another sequence
beside the second one, then tokens one by one. A language model whose layers keep a state, look
ahead, or place tokens by where they stand in a pass gives other numbers then, and is found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from llavakit.model.layer_decoder import Attend, Decoder, UnsupportedAttention

LARGEST_TOLERANCE = 0.05
"""Of the root mean square. Leaving out a multiplier or a mask is ten times further off."""

_FACTOR = 32.0
_DECODED = 4
"""Tokens of each sequence that are computed one by one."""


@dataclass(frozen=True, slots=True)
class KeyShape:
    """What the engine keeps of a token in each layer.

    Attributes:
        layers: decoder layers, each of which attends once.
        heads: of the queries.
        kv_heads: of keys and values.
        head_dim: numbers of each.
    """

    layers: int
    heads: int
    kv_heads: int
    head_dim: int


def key_shape(text: object) -> KeyShape:
    """Return the shape that a language model's configuration declares.

    Args:
        text: the HF configuration of the language model.
    """
    heads = int(text.num_attention_heads)  # type: ignore[attr-defined]
    dim = getattr(text, "head_dim", None) or text.hidden_size // heads  # type: ignore[attr-defined]
    return KeyShape(
        int(text.num_hidden_layers),  # type: ignore[attr-defined]
        heads,
        int(getattr(text, "num_key_value_heads", None) or heads),
        int(dim),
    )


def compare(
    decode: Decoder,
    reference: Callable[[Tensor], Tensor],
    sequences: Sequence[Tensor],
    shape: KeyShape,
    finish: Callable[[Tensor], Tensor] = lambda hidden: hidden,
) -> str | None:
    """Compute sequences both ways; None if the numbers agree, or what is wrong.

    Args:
        decode: the decoder.
        reference: transformers' forward: embeddings [T, hidden] -> [T, n].
        sequences: embeddings of two sequences, [T, hidden], of at least 4 tokens each.
        shape: what the engine will keep.
        finish: from the decoder's hidden states to what ``reference`` gives.
    """
    expected = [reference(one).float() for one in sequences]
    scale = torch.cat(expected).std().clamp_min(1e-12)
    if not torch.isfinite(scale):
        return None  # such weights answer nothing; each request will say so
    # How far the same forward strays where its input is changed in the last bits.
    eps = torch.finfo(sequences[0].dtype).eps
    noise = torch.randn(sequences[0].shape, generator=torch.Generator().manual_seed(1))
    noise = noise.to(sequences[0])
    strayed = reference(sequences[0] * (1 + 2 * eps * noise)).float()
    tolerance = _FACTOR * max(float(_apart(strayed, expected[0], scale).median()), 8 * eps)
    limit = min(tolerance, LARGEST_TOLERANCE)
    found, passes = _in_passes(decode, sequences, shape)
    apart = [
        _apart(finish(one).float(), other, scale)
        for one, other in zip(found, expected, strict=True)
    ]
    worst = max(_medians(torch.cat(apart), torch.cat(passes)))
    if worst <= limit:  # False for NaN
        return None
    return f"its numbers are {worst:.2g} of their spread off those of transformers"


def _apart(values: Tensor, others: Tensor, scale: Tensor) -> Tensor:
    """How far the numbers of each token are apart, [T]: root mean square over the spread."""
    return (values - others).square().mean(-1).sqrt() / scale


def _medians(values: Tensor, groups: Tensor) -> Iterator[float]:
    """The median of each group: one token that went to another expert by rounding is no fault."""
    for group in sorted({*groups.tolist()}):
        yield float(values[(groups == group).to(values.device)].median())


def _in_passes(
    decode: Decoder, sequences: Sequence[Tensor], shape: KeyShape
) -> tuple[list[Tensor], list[Tensor]]:
    """Hidden states of each sequence, computed as the engine does, and the kind of pass of each."""
    long, short = (len(one) for one in sequences)
    alone = min(_DECODED, short - 1)
    cut = (long - alone) * 2 // 3
    plan = [
        ((0, 0, cut),),
        ((0, cut, long - alone), (1, 0, short - alone)),
        # Rows change places, as they do when others come and go.
        *(
            ((1, short - n, short - n + 1), (0, long - n, long - n + 1))
            for n in range(alone, 0, -1)
        ),
    ]
    kept = _Kept(shape)
    parts: list[list[Tensor]] = [[] for _ in sequences]
    kinds: list[list[int]] = [[] for _ in sequences]
    for number, rows in enumerate(plan):
        packed = torch.cat([sequences[which][start:end] for which, start, end in rows])
        places = torch.cat([torch.arange(start, end) for _, start, end in rows])
        kept.begin([(which, end - start) for which, start, end in rows])
        hidden = decode(packed, places.to(packed.device), kept.attend)
        kept.end()
        counts = [end - start for _, start, end in rows]
        for (which, _, _), one in zip(rows, torch.split(hidden, counts), strict=True):
            parts[which].append(one)
            kinds[which] += [min(number, 2)] * len(one)
    return [torch.cat(one) for one in parts], [torch.tensor(one) for one in kinds]


@dataclass(slots=True)
class _Kept:
    """Keys and values of all layers and sequences, and plain attention over them."""

    shape: KeyShape
    rows: list[tuple[int, int]] = field(default_factory=list)
    seen: list[int] = field(default_factory=list)
    tensors: dict[tuple[int, int], tuple[Tensor, Tensor]] = field(default_factory=dict)

    def begin(self, rows: list[tuple[int, int]]) -> None:
        self.rows, self.seen = rows, []

    def end(self) -> None:
        """Check that each layer has attended once."""
        if sorted(self.seen) != list(range(self.shape.layers)):
            raise UnsupportedAttention(
                f"{len(set(self.seen))} of the language model's {self.shape.layers} layers attend "
                "through transformers' interface."
            )

    @property
    def attend(self) -> Attend:
        return self._attend

    def _attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float
    ) -> Tensor:
        want = self.shape
        shapes = {tuple(key.shape[1:]), tuple(value.shape[1:])}
        same = shapes == {(want.kv_heads, want.head_dim)}
        if not same or tuple(query.shape[1:]) != (want.heads, want.head_dim):
            raise UnsupportedAttention(
                f"Layer {layer} of the language model has keys and values of {sorted(shapes)}, "
                f"where its configuration declares {[want.kv_heads, want.head_dim]}."
            )
        self.seen.append(layer)
        out, first = torch.empty_like(query), 0
        for which, count in self.rows:
            new = slice(first, first + count)
            first += count
            keys, values = key[new], value[new]
            if (before := self.tensors.get((layer, which))) is not None:
                keys, values = torch.cat((before[0], keys)), torch.cat((before[1], values))
            self.tensors[layer, which] = keys, values
            out[new] = _plain_attention(query[new], keys, values, scaling)
        return out


def _plain_attention(query: Tensor, keys: Tensor, values: Tensor, scaling: float) -> Tensor:
    """Causal attention of the last tokens of one sequence, [T, heads, dim]."""
    groups = query.shape[1] // keys.shape[1]
    keys, values = (one.repeat_interleave(groups, 1).transpose(0, 1) for one in (keys, values))
    scores = query.transpose(0, 1).float() @ keys.float().transpose(1, 2) * scaling
    ahead = torch.ones(scores.shape[1:], dtype=torch.bool, device=scores.device)
    scores.masked_fill_(ahead.triu(keys.shape[1] - len(query) + 1), float("-inf"))
    return (F.softmax(scores, -1).to(values.dtype) @ values).transpose(0, 1)
