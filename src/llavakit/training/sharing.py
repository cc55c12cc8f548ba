"""Conversations about the same images are learnt together, and read the images once.

A page with eight questions is eight records of mostly the same tokens. Where they begin alike up
to behind the last image, they become one :func:`~llavakit.training.packing.tree`; the loss and
its gradients are those of the records one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llavakit.images import Picture, open_picture
from llavakit.training.examples import POLICY, Collator, Example
from llavakit.training.labels import IGNORED, LabelledTokens
from llavakit.training.packing import pack, tree
from llavakit.values import Image

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Beginning:
    """What a conversation may have in common with others.

    Attributes:
        key: equal for conversations that begin alike; empty for one without images.
        tokens: how many tokens that are.
    """

    key: str
    tokens: int


ALONE = Beginning("", 0)


def beginning(made: LabelledTokens, image_id: int, pictures: Sequence[Image]) -> Beginning:
    """How a conversation begins, up to behind its last image and before what it learns.

    Args:
        made: its tokens, each image as many as it has features.
        image_id: what these are.
        pictures: the images.
    """
    if not pictures:
        return ALONE
    behind = len(made.ids) - made.ids[::-1].index(image_id)
    learnt = next(at for at, label in enumerate(made.labels) if label != IGNORED)
    count = min(behind, learnt - 1)
    digest = sha256(str(made.ids[:count]).encode())
    for picture in pictures:
        digest.update(_identity(picture))
    return Beginning(digest.hexdigest(), count)


def _identity(image: Image) -> bytes:
    source: Any = image.source
    if isinstance(source, (str, Path)):
        return f"named {source}\n".encode()
    if isinstance(source, bytes):
        return sha256(source).digest()
    opened = source if isinstance(source, Picture) else open_picture(source, POLICY)
    return opened.digest.encode()


def groups(
    lengths: Sequence[int], beginnings: Sequence[Beginning], most: int
) -> tuple[tuple[tuple[int, ...], ...], tuple[int, ...]]:
    """Which conversations are learnt together.

    Args:
        lengths: tokens of each conversation, negative for those without images.
        beginnings: of each.
        most: tokens that a circle may have.

    Returns:
        Circles of indices, in the order of their first; and the tokens of each circle (at most:
        first words may be alike, too), negative for those without images.
    """
    made: list[list[int]] = []
    tokens: list[int] = []
    open_groups: dict[str, int] = {}
    for index, (length, begins) in enumerate(zip(lengths, beginnings, strict=True)):
        at = open_groups.get(begins.key) if begins.key else None
        own = abs(length) - begins.tokens
        if at is not None and tokens[at] + own <= most:
            made[at].append(index)
            tokens[at] += own
            continue
        open_groups[begins.key] = len(made)
        made.append([index])
        tokens.append(length)
    return tuple(tuple(one) for one in made), tuple(tokens)


@dataclass(frozen=True, slots=True)
class SharingCollator:
    """Circles of examples as the keyword arguments of an HF LLaVA model.

    Attributes:
        alone: makes batches of examples; its padding and family hold.
    """

    alone: Collator

    def __call__(self, items: Sequence[Sequence[Example]]) -> dict[str, Tensor]:
        """``input_ids``, ``labels`` and ``position_ids`` are [B, L].

        B is as few rows as are needed; ``attention_mask`` is [B, 1, L, L], true where seen.
        """
        trees = [tree(circle) for circle in items]
        rows = pack(trees, 0, self.alone.padding)
        batch = {
            "input_ids": rows.ids,
            "labels": rows.labels,
            "position_ids": rows.positions,
            "attention_mask": rows.seen,
        }
        return batch | self.alone.pictures([items[number][0] for number in rows.order])
