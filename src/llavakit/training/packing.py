"""Several conversations in one row of tokens; what they begin with alike stands there once.

Questions about one image differ only behind it. Put into one row, they share the image's
tokens, which are most of each: the trunk. What follows is a branch for each conversation. A token
sees the trunk and the branch that it belongs to, and positions of a branch go on where the trunk
ends, so that every conversation reads exactly as in a row of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Protocol

from llavakit.training.labels import IGNORED

if TYPE_CHECKING:
    from torch import Tensor


class TokensAndLabels(Protocol):
    """Tokens and their labels, of one conversation."""

    @property
    def ids(self) -> tuple[int, ...]: ...

    @property
    def labels(self) -> tuple[int, ...]: ...


@dataclass(frozen=True, slots=True)
class Tree:
    """Conversations that begin alike.

    Attributes:
        ids: tokens: the trunk's, then those of each branch.
        labels: what is learnt; nothing of the trunk where there are several branches.
        positions: of each token in the conversation that it belongs to.
        branches: which branch a token belongs to; 0 is the trunk.
    """

    ids: tuple[int, ...]
    labels: tuple[int, ...]
    positions: tuple[int, ...]
    branches: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.ids)


def tree(conversations: Sequence[TokensAndLabels]) -> Tree:
    """Conversations as one tree; one alone is a trunk.

    Args:
        conversations: at least one; each learns something, and nothing before its second token.
    """
    if len(conversations) == 1:
        (one,) = conversations
        count = len(one.ids)
        return Tree(one.ids, one.labels, tuple(range(count)), (0,) * count)
    trunk = _trunk(conversations)
    first = conversations[0]
    ids, labels = list(first.ids[:trunk]), list(first.labels[:trunk])
    positions, branches = list(range(trunk)), [0] * trunk
    for number, one in enumerate(conversations, 1):
        ids += one.ids[trunk:]
        labels += one.labels[trunk:]
        positions += range(trunk, len(one.ids))
        branches += [number] * (len(one.ids) - trunk)
    return Tree(tuple(ids), tuple(labels), tuple(positions), tuple(branches))


def _trunk(conversations: Sequence[TokensAndLabels]) -> int:
    """How many tokens all begin with, without any that another is learnt from.

    The token before a learnt one predicts it, and the trunk's last token would have to predict
    the beginning of every branch.
    """
    columns = zip(*(one.ids for one in conversations), strict=False)
    alike = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))
    learnt = (next(at for at, x in enumerate(one.labels) if x != IGNORED) for one in conversations)
    return max(0, min(alike, min(learnt) - 1))


@dataclass(frozen=True, slots=True)
class Rows:
    """Packed trees: tensors are [B, L].

    Attributes:
        ids: tokens.
        labels: what is learnt.
        positions: of each token in its conversation.
        seen: [B, 1, L, L]: whether the token of the row sees that of the column.
        order: the trees' numbers in reading order.
    """

    ids: Tensor
    labels: Tensor
    positions: Tensor
    seen: Tensor
    order: tuple[int, ...]


def pack(trees: Sequence[Tree], length: int, padding: int) -> Rows:
    """Trees in rows of one length, longest first, each in the first row with room.

    Args:
        trees: at least one.
        length: of the rows in tokens; as long as the longest tree if that is more.
        padding: the id that fills rows; it attends to itself, and no other token to it.
    """
    import torch

    longest = sorted(range(len(trees)), key=lambda number: -len(trees[number]))
    length = max(length, len(trees[longest[0]]))
    rows: list[list[int]] = []
    room: list[int] = []
    for number in longest:
        size = len(trees[number])
        at = next((at for at, left in enumerate(room) if left >= size), len(rows))
        if at == len(rows):
            rows.append([])
            room.append(length)
        rows[at].append(number)
        room[at] -= size
    owners = torch.full((len(rows), length), -1)
    ids, labels = torch.full_like(owners, padding), torch.full_like(owners, IGNORED)
    positions, branches = torch.zeros_like(owners), torch.zeros_like(owners)
    for row, numbers in enumerate(rows):
        at = 0
        for number in numbers:
            one = trees[number]
            part = slice(at, at + len(one))
            ids[row, part], labels[row, part] = torch.tensor([one.ids, one.labels])
            positions[row, part], branches[row, part] = torch.tensor([one.positions, one.branches])
            owners[row, part] = number
            at = part.stop
    order = tuple(number for numbers in rows for number in numbers)
    return Rows(ids, labels, positions, _seen(owners, branches), order)


def _seen(owners: Tensor, branches: Tensor) -> Tensor:
    import torch

    together = owners[:, :, None] == owners[:, None, :]
    branch = (branches[:, None, :] == 0) | (branches[:, :, None] == branches[:, None, :])
    length = owners.size(1)
    causal = torch.ones(length, length, dtype=torch.bool, device=owners.device).tril()
    return (together & branch & causal)[:, None]
