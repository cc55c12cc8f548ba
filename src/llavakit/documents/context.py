"""A question about pages, and how many of them a model's context holds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from llavakit._checks import check_integer, checked, members
from llavakit.documents.pages import Page
from llavakit.documents.reading import Model
from llavakit.documents.text_layer import Box
from llavakit.documents.tiles import Tiles
from llavakit.errors import ContextLengthError, ParameterError
from llavakit.images import Picture
from llavakit.values import Image, Message, Part, SamplingParams, Text

LABEL = "Page {page} of {source}:"
"""What is written above each page's image, so that an answer can say where it stands."""

_ANSWER = SamplingParams().max_tokens
PageOrText = TypeVar("PageOrText", bound=Page | str)


@dataclass(frozen=True, slots=True)
class PagesInContext(Generic[PageOrText]):
    """A question with the pages that fit.

    Attributes:
        message: the pages' images, then the question.
        pages: the pages (and passages of text) that are in it, in their order.
        left_out: pages that did not fit.
        tokens: tokens of the prompt.
    """

    message: Message
    pages: tuple[PageOrText, ...]
    left_out: tuple[PageOrText, ...]
    tokens: int


@checked
def ask_about(
    pages: Iterable[Page | str],
    question: str,
    label: str | None = LABEL,
    *,
    region: Box | None = None,
    tiles: Tiles | None = None,
) -> Message:
    """A user's message of images of pages and a question.

    Args:
        pages: in the order in which the model shall see them. A passage of text among them
            stands there as text.
        question: in plain words; it comes last.
        label: what is written above each image; ``{page}`` and ``{source}`` are filled in.
            None writes nothing. A page that is alone has no label: there is no other page.
        region: left, top, right and bottom of the part of each page that is shown, as shares of
            its width and height, so that small print is seen at full resolution; None shows
            whole pages.
        tiles: how what is shown of a page is cut (see :class:`~llavakit.documents.Tiles`): it is
            shown whole, and then its tiles, row by row. None cuts nothing.

    Raises:
        ParameterError: a page that is none, or a region that holds nothing.
    """
    pages = members("pages", pages, Page | str)
    if region is not None:
        check_region(region)
    parts: list[Part] = []
    for page in pages:
        if isinstance(page, str):
            parts.append(Text(f"{page}\n\n"))
            continue
        if label is not None and len(pages) > 1:
            heading = label.replace("{page}", str(page.number)).replace("{source}", page.source)
            parts.append(Text(f"{heading}\n"))
        shown = page.picture if region is None else _cut(page.picture, region)
        cut = [] if tiles is None else tiles.cut(shown)
        parts += map(Image, [shown, *cut] if len(cut) > 1 else [shown])
    return Message("user", [*parts, Text(question)])


@checked
def fit_pages(
    backend: Model,
    pages: Iterable[PageOrText],
    question: str,
    *,
    answer_tokens: int = _ANSWER,
    label: str | None = LABEL,
    before: Sequence[Message] = (),
    region: Box | None = None,
    tiles: Tiles | None = None,
) -> PagesInContext[PageOrText]:
    """A question about as many pages as the model can take, the first ones first.

    Tokens are counted exactly, images included, and nothing is run.

    Args:
        backend: the model that is going to answer.
        pages: the best ones first, as a retriever gives them; passages of text may be among them.
        question: in plain words.
        answer_tokens: tokens that are kept free for the answer.
        label: see :func:`ask_about`.
        before: messages that stand before the question.
        region, tiles: see :func:`ask_about`.

    Raises:
        ContextLengthError: not even the first page fits.
        ParameterError: ``answer_tokens`` is below 1, or a page that is none.
    """
    check_integer("answer_tokens", answer_tokens, least=1)
    pages = members("pages", pages, Page | str)
    room = backend.info.context_length - answer_tokens
    fewest = min(1, len(pages))
    for count in range(len(pages), fewest - 1, -1):
        message = ask_about(pages[:count], question, label, region=region, tiles=tiles)
        tokens = backend.count_tokens([*before, message])
        if tokens <= room:
            return PagesInContext(message, tuple(pages[:count]), tuple(pages[count:]), tokens)
    raise ContextLengthError(
        f"The question {'with one page ' if pages else ''}takes {tokens} tokens, and beside "
        f"{answer_tokens} for the answer the model has room for {max(room, 0)}; ask for a "
        "shorter answer, or take a model with a longer context.",
        prompt_tokens=tokens,
        max_tokens=answer_tokens,
        context_length=backend.info.context_length,
    )


def check_region(region: Box) -> None:
    """Raise ``ParameterError`` for a region that holds nothing."""
    left, top, right, bottom = region
    if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        raise ParameterError(
            f"region is {region}; write left, top, right and bottom as shares from 0 to 1, such as "
            "(0, 0.5, 1, 1) for the lower half."
        )


def _cut(picture: Picture, region: Box) -> Picture:
    """The part of an image, at least a pixel of it."""
    (width, height), (left, top, right, bottom) = picture.size, region
    x, y = math.floor(left * width), math.floor(top * height)
    far, low = math.ceil(right * width), math.ceil(bottom * height)
    return Picture(picture.rgb.crop((x, y, max(far, x + 1), max(low, y + 1))))
