"""One request inside the engine: its tokens, how far it is computed, and what it waits for."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from llavakit.engine.extents import Extent
from llavakit.engine.prefix import Segment, VirtualIds, image_ids
from llavakit.values import Request

_numbers = itertools.count()


class Outlet(Protocol):
    """Where a sequence's results go: a channel of an answer, or the result of an embedding."""

    def put(self, one: Any, /) -> None:
        """Pass something on."""

    def fail(self, error: BaseException, /) -> None:
        """End with an error; without effect if it has ended."""


@dataclass(frozen=True, slots=True, eq=False)
class ImageSpan:
    """An image's place in a prompt.

    Attributes:
        start: index of its first token.
        count: how many tokens it takes.
        key: digest of all that its features depend on.
        pixels: what the vision tower needs, preprocessed (see ``model.preprocess``).
    """

    start: int
    count: int
    key: str
    pixels: Any

    @property
    def end(self) -> int:
        """The first index behind it."""
        return self.start + self.count


@dataclass(slots=True, eq=False)
class Sequence:
    """A prompt on its way to an answer, or to an embedding.

    ``tokens`` are the prompt's ids (an image's tokens all have the model's image id),
    followed by the answer's. ``computed`` counts those whose keys and values lie in the
    arena. A sequence is *prefilling* while ``computed < len(prompt)`` and *decoding* after.

    ``launched`` counts those too that a step in flight computes. Where that is all of them,
    the step samples the next token, which is not among ``tokens`` yet: it is the one at
    ``place`` among the tokens of that step.
    """

    tokens: list[int]
    images: tuple[ImageSpan, ...]
    request: Request
    channel: Outlet
    max_tokens: int
    prompt_length: int = 0
    number: int = field(default_factory=lambda: next(_numbers))
    arrived: float = field(default_factory=time.monotonic)
    virtual: VirtualIds = field(default_factory=lambda: np.empty(0, np.int64))
    segment: Segment | None = None
    prefix: tuple[Extent, ...] = ()
    """Where the tokens before its own segment lie, once it runs."""
    computed: int = 0
    launched: int = 0
    place: int = -1
    cached: int = 0
    answer: Any = None
    """The answer so far (see ``engine.answer``); None until the request is queued."""
    embedding: Any = None
    """What is embedded (see ``engine.embedding``); None of an answer."""

    def __post_init__(self) -> None:
        self.prompt_length = len(self.tokens)
        salt = 0 if self.embedding is None else self.embedding.salt
        self.virtual = virtual_ids(self.tokens, self.images, salt)

    @property
    def shareable(self) -> VirtualIds:
        """Virtual ids of the tokens that need not be computed again if they lie in the arena.

        One token at least must be computed, or there would be no logits to sample from; of an
        embedding, all whose hidden states are needed.
        """
        return self.virtual[: -1 if self.embedding is None else self.embedding.first]

    @property
    def reserve(self) -> int:
        """Slots for the prompt and the longest answer; the last token needs none."""
        return self.prompt_length + self.max_tokens - 1

    @property
    def prefilling(self) -> bool:
        """Whether a part of the prompt is still to be computed."""
        return self.computed < self.prompt_length

    @property
    def deadline(self) -> float | None:
        """When the request is given up, on ``time.monotonic``'s clock."""
        timeout = self.request.timeout
        return None if timeout is None else self.arrived + timeout

    @property
    def image_tokens(self) -> int:
        """Tokens of all images of the prompt."""
        return sum(image.count for image in self.images)

    def known_ids(self) -> VirtualIds:
        """Return the virtual ids of all computed tokens, the answer's too."""
        answer = np.asarray(self.tokens[self.prompt_length :], dtype=np.int64)
        return np.concatenate([self.virtual, answer])[: self.computed]


def virtual_ids(tokens: Items[int], images: Items[ImageSpan], salt: int = 0) -> VirtualIds:
    """Return the ids by which prefixes are compared (see :mod:`llavakit.engine.prefix`).

    Args:
        tokens: of the prompt.
        images: in it.
        salt: 62 bits; sequences of different salts share nothing.
    """
    ids = np.asarray(tokens, dtype=np.int64)
    for image in images:
        ids[image.start : image.end] = image_ids(image.key, image.count)
    return ids ^ salt if salt else ids
