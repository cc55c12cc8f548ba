"""What an embedding asks of the engine: hidden states of some tokens, through an adapter.

An embedding is a sequence like an answer: its tokens are planned by the same scheduler, within the
same budget of a step, and its images come from the same feature cache. It samples nothing. In a
step, rows of an adapter are a forward pass of their own behind that of the answers, so that no
number of an answer depends on them; and their virtual ids are salted, so that keys and values
computed with an adapter are never a prefix of anything else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from llavakit.embeddings import Embedding, Places, Vectors
from llavakit.engine.encoding import OpenMedia, encode
from llavakit.engine.prefix import common_prefix
from llavakit.engine.sequence import ImageSpan
from llavakit.errors import RequestCancelledError
from llavakit.model.places import places_of
from llavakit.model.reader import Reader
from llavakit.model.retrieval import RetrievalModel
from llavakit.prompts.conversation import Turn, to_turns
from llavakit.values import Image, Message, Request

if TYPE_CHECKING:
    from llavakit.engine.scheduler import Work


@dataclass(slots=True, eq=False)
class EmbeddingJob:
    """Tokens ``first`` to ``last`` (behind them) of a sequence, through an adapter.

    Attributes:
        model: the decoder with the adapter, and the projection.
        parts: vectors of steps that were settled, [tokens, dimensions].
    """

    model: RetrievalModel
    first: int
    last: int
    parts: list[Tensor] = field(default_factory=list)

    @property
    def salt(self) -> int:
        """62 bits that differ between adapters, and are not 0."""
        digest = hashlib.sha256(self.model.fingerprint.encode()).digest()
        return int.from_bytes(digest[:8], "big") >> 2 | 1

    def wanted(self, work: Work) -> slice:
        """Return which of a work's tokens are embedded; perhaps none."""
        first = max(self.first, work.start) - work.start
        return slice(first, max(first, min(self.last, work.start + work.count) - work.start))

    def vectors(self) -> Vectors:
        """Return all vectors, on the host."""
        result: Vectors = torch.cat(self.parts).cpu().numpy()
        assert len(result) == self.last - self.first, "every token was embedded once"
        return result


class EmbeddingResult:
    """The result of an embedding, for the thread that waits for it."""

    def __init__(self) -> None:
        self._future: Future[Vectors] = Future()

    def put(self, vectors: Vectors, /) -> None:
        """End with vectors."""
        if not self._future.done():
            self._future.set_result(vectors)

    def fail(self, error: BaseException, /) -> None:
        """End with an error."""
        if not self._future.done():
            self._future.set_exception(error)

    def get(self) -> Vectors:
        """Wait for the vectors, [tokens, dimensions]; raises what the embedding ended with."""
        return self._future.result()


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """The prompt of an image or a text, and what of it is embedded.

    Attributes:
        tokens, images: as a sequence takes them.
        first, last: the tokens that are embedded; ``last`` is behind them.
        places: see :class:`~llavakit.embeddings.Embedding`.
        words: likewise.
    """

    tokens: list[int]
    images: tuple[ImageSpan, ...]
    first: int
    last: int
    places: Places | None = None
    words: tuple[str, ...] = ()


class PendingEmbedding:
    """An embedding that was queued.

    Args:
        result: ends with its vectors.
        prompt: what is embedded.
        cancel: gives it up; must not block.
    """

    def __init__(self, result: EmbeddingResult, prompt: Prompt, cancel: Callable[[], None]) -> None:
        self._result = result
        self._prompt = prompt
        self._cancel = cancel

    def get(self) -> Embedding:
        """Wait for the embedding; raises what it ended with."""
        return Embedding(self._result.get(), self._prompt.places, self._prompt.words)

    def cancel(self) -> None:
        """Free the model of it, unless it has ended."""
        self._cancel()
        self._result.fail(RequestCancelledError("The embedding was given up by its caller."))


def prompt_of(reader: Reader, content: Image | str, open_media: OpenMedia) -> Prompt:
    """Return the prompt of an image or a query: a user who says nothing else.

    Raises:
        InputError: the image cannot be used.
    """
    if isinstance(content, Image):
        return _image_prompt(reader, *encode(reader, _said(content), open_media))
    texts = (content, *_OTHER_TEXTS)
    tokens, *others = (reader.tokenizer.encode(_said(text)) for text in texts)
    return _text_prompt(reader, tokens, others)


def template_of(reader: Reader) -> str:
    """Return a digest of what a prompt has around a query: embeddings depend on it as well."""
    tokens = np.asarray(reader.tokenizer.encode(_said(_OTHER_TEXTS[0])), np.int64)
    return hashlib.sha256(tokens.tobytes()).hexdigest()[:8]


def _said(content: Image | str) -> list[Turn]:
    return to_turns(Request((Message("user", content),)))


def _image_prompt(reader: Reader, tokens: list[int], images: tuple[ImageSpan, ...]) -> Prompt:
    """Return the prompt of an image, cut behind it: what follows changes none of its vectors.

    Args:
        reader: of the checkpoint.
        tokens, images: a conversation that begins with one image.
    """
    (image,) = images
    places = places_of(reader, image.pixels.size, image.count)
    return Prompt(tokens[: image.end], images, image.start, image.end, places)


def _text_prompt(reader: Reader, tokens: list[int], others: list[list[int]]) -> Prompt:
    """Return the prompt of a text. All from its first word on is embedded.

    What the template writes behind the text has read all of it, as ColPali's padding does
    (query augmentation); what stands before it is the same for all texts.

    Args:
        reader: of the checkpoint.
        tokens: a conversation of one text.
        others: conversations of other texts, which begin and end unlike each other.
    """
    first = min(_shared(tokens, other) for other in others)
    behind = len(tokens) - min(_shared(tokens[::-1], other[::-1]) for other in others)
    tokenizer = reader.tokenizer.tokenizer
    words = [
        tokenizer.decode([token]).strip() if place < behind else ""
        for place, token in enumerate(tokens)
    ]
    return Prompt(tokens, (), first, len(tokens), words=tuple(words[first:]))


_OTHER_TEXTS = ("a b", "1 2")
"""Two texts that begin and end unlike each other."""


def _shared(one: list[int], other: list[int]) -> int:
    return common_prefix(np.asarray(one, np.int64), np.asarray(other, np.int64))
