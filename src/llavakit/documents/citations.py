"""Where on a page an answer stands: the boxes of quoted words, and the page with them drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import TYPE_CHECKING, Any, Self

from llavakit._checks import check_integer, checked
from llavakit.documents.files import read_documents
from llavakit.documents.folders import Document, Failure
from llavakit.documents.passwords import Password
from llavakit.documents.ranges import PageRange
from llavakit.documents.references import PageReference, reopen
from llavakit.documents.store import PageStore
from llavakit.documents.text_layer import Box, TextLayer, Word
from llavakit.documents.view import View
from llavakit.errors import DocumentError, InputError
from llavakit.sources import DEFAULT_POLICY, SourcePolicy

if TYPE_CHECKING:
    from PIL import Image as PILImage

_ENOUGH = 0.6  # of a quote's words, in their order: models leave out and add some
_COLOUR = (220, 30, 30)


@dataclass(frozen=True, slots=True)
class PageCitation:
    """A page that an answer stands on, and where on it.

    Attributes:
        reference: the page.
        quote: the words that are cited; "" cites the page as a whole.
        boxes: where they stand, a box for each line, as shares of the page's width and height.
        note: why there are no boxes, where words are cited and none were found: what a model
            transcribed says nothing of where it stands, so that only a text layer has places.
    """

    reference: PageReference
    quote: str = ""
    boxes: tuple[Box, ...] = ()
    note: str = ""

    @checked
    def show(
        self,
        *,
        store: PageStore | None = None,
        policy: SourcePolicy = DEFAULT_POLICY,
        page_seconds: float | None = 30.0,
        password: Password = None,
    ) -> PILImage.Image:
        """Return the page's image with the boxes drawn upon it, as a PIL image.

        Arguments and errors are those of :func:`~llavakit.documents.reopen`.
        """
        from PIL import ImageDraw

        (page,) = reopen(
            self.reference,
            store=store,
            policy=policy,
            page_seconds=page_seconds,
            password=password,
        )
        image = page.picture.rgb.copy()
        draw = ImageDraw.Draw(image)
        width, height = image.size
        pen = max(2, round(max(width, height) / 500))
        for left, top, right, bottom in self.boxes:
            corners = (
                max(0, math.floor(left * width) - pen),
                max(0, math.floor(top * height) - pen),
                min(width - 1, math.ceil(right * width) + pen),
                min(height - 1, math.ceil(bottom * height) + pen),
            )
            draw.rectangle(corners, outline=_COLOUR, width=pen)
        return image

    @checked
    def thumbnail(self, side: int = 256, **options: Any) -> PILImage.Image:
        """Return the same in small: at most ``side`` pixels along one side.

        Options and errors are those of :meth:`show`.
        """
        check_integer("side", side, least=16)
        image = self.show(**options)
        image.thumbnail((side, side))
        return image

    def places(self) -> dict[str, Any]:
        """The quote, its boxes and the note in types of JSON."""
        boxes = [list(box) for box in self.boxes]
        return {"quote": self.quote, "boxes": boxes, "note": self.note}

    def metadata(self) -> dict[str, Any]:
        """The citation in types of JSON: the page's reference, and :meth:`places`."""
        return {**self.reference.metadata(), **self.places()}

    @classmethod
    @checked
    def from_metadata(cls, metadata: Mapping[str, Any]) -> Self:
        """The citation that :meth:`metadata` wrote down.

        Raises:
            DocumentError: it is none.
        """
        reference = PageReference.from_metadata(metadata)
        try:
            boxes = tuple(_as_box(box) for box in metadata.get("boxes") or ())
        except (TypeError, ValueError) as error:
            raise DocumentError(
                "The boxes of this citation are damaged; cite the page anew."
            ) from error
        quote, note = (str(metadata.get(key) or "") for key in ("quote", "note"))
        return cls(reference, quote, boxes, note)


@checked
def cite(
    reference: PageReference,
    quote: str = "",
    *,
    policy: SourcePolicy = DEFAULT_POLICY,
    page_seconds: float | None = 30.0,
    password: Password = None,
) -> PageCitation:
    """Find where quoted words stand on a page.

    The page is drawn again from its document, for that is where the boxes of its words are.

    Args:
        reference: the page, as an index gives it back.
        quote: words of the page, such as an answer that was read from it; "" cites the page.
        policy: what may be opened.
        page_seconds: most seconds for drawing it (see :func:`~llavakit.documents.open_files`).
        password: what opens an encrypted document.

    Raises:
        DocumentError: the page looks different now, or its document is not there any more.
        SourceNotAllowedError: the policy forbids it.
    """
    if not quote.strip():
        return PageCitation(reference)
    layer = _layer(reference, policy, page_seconds, password)
    return _cited(reference, layer, quote, boxes_of(layer, quote))


@checked
def cite_answer(
    references: Sequence[PageReference],
    answer: Any,
    *,
    policy: SourcePolicy = DEFAULT_POLICY,
    page_seconds: float | None = 30.0,
    password: Password = None,
) -> list[PageCitation]:
    """Find where an answer stands on each of the pages that it was given from.

    The words of the answer are looked for as :func:`cite` does; where they do not stand on a page,
    the numbers in it are (of two characters at least). Of data, each value is. A page that cannot
    be opened again has a note that says so: the answer is there, whatever became of its page.

    Args:
        references: the pages.
        answer: what a model answered: words, or data (mappings, lists, pydantic objects).
        policy, page_seconds, password: as for :func:`cite`.
    """
    quotes = _values(answer)
    found = []
    for reference in references:
        try:
            layer = _layer(reference, policy, page_seconds, password)
        except InputError as error:
            found.append(PageCitation(reference, "; ".join(quotes), note=str(error)))
            continue
        boxes = tuple(dict.fromkeys(box for one in quotes for box in _answer_boxes(layer, one)))
        found.append(_cited(reference, layer, "; ".join(quotes), boxes))
    return found


def _layer(
    reference: PageReference, policy: SourcePolicy, page_seconds: float | None, password: Password
) -> TextLayer:
    """The text layer of a page, which is rendered again; one without words where it has none."""
    view = View(reference.dpi, reference.max_pixels, True, page_seconds)
    one = Document(reference.source, PageRange(((reference.number, reference.number),)))
    (page,) = read_documents([one], view, policy, password)
    if isinstance(page, Failure):
        raise page.error
    if page.digest != reference.sha256:
        raise DocumentError(
            f"Page {reference.number} of {reference.source[-80:]} is not the page that was indexed "
            "any more; index the document anew."
        )
    return page.layer or TextLayer("")


def _cited(
    reference: PageReference, layer: TextLayer, quote: str, boxes: tuple[Box, ...]
) -> PageCitation:
    note = ""
    if not boxes and layer.is_whole:
        note = "These words do not stand in the text layer of the page."
    elif not boxes:
        note = (
            "The page has no text layer that says what it shows, and a transcription by a model "
            "says nothing of where words stand."
        )
    return PageCitation(reference, quote, boxes, note)


def _values(answer: Any) -> list[str]:
    """The texts and numbers of an answer."""
    dump = getattr(answer, "model_dump", None)  # of pydantic objects
    if callable(dump):
        answer = dump(mode="json")
    if isinstance(answer, Mapping):
        answer = list(answer.values())
    if isinstance(answer, (list, tuple)):
        return [value for one in answer for value in _values(one)]
    text = "" if answer is None or isinstance(answer, bool) else str(answer).strip()
    return [text] if text else []


def _answer_boxes(layer: TextLayer, answer: str) -> tuple[Box, ...]:
    boxes = boxes_of(layer, answer)
    if boxes:
        return boxes
    numbers = [one for one in map(_plain, answer.split()) if len(one) > 1 and _has_digit(one)]
    return tuple(word.box for word in layer.words if _plain(word.text) in numbers)


def _has_digit(word: str) -> bool:
    return any(map(str.isdigit, word))


@checked
def boxes_of(layer: TextLayer, quote: str) -> tuple[Box, ...]:
    """Return where a quote stands on a page, a box for each line of it; () where it does not.

    Case and punctuation are of no concern. Where the words do not stand there exactly, they are
    taken from the place that has most of them in their order, if that is 60%.
    """
    wanted = [one for one in map(_plain, quote.split()) if one]
    words = [(plain, word) for word in layer.words if (plain := _plain(word.text))]
    if not wanted:
        return ()
    texts = [plain for plain, _ in words]
    for at in range(len(texts) - len(wanted) + 1):
        if texts[at : at + len(wanted)] == wanted:
            return _lines([word for _, word in words[at : at + len(wanted)]])
    blocks = SequenceMatcher(None, texts, wanted, autojunk=False).get_matching_blocks()
    found = [word for block in blocks for _, word in words[block.a : block.a + block.size]]
    return _lines(found) if len(found) >= max(2, _ENOUGH * len(wanted)) else ()


def _plain(word: str) -> str:
    return "".join(filter(str.isalnum, word.casefold()))


def _lines(words: Sequence[Word]) -> tuple[Box, ...]:
    """Boxes of words, those that follow each other in a line joined."""
    found: list[Box] = []
    for word in words:
        if found and _goes_on(found[-1], word.box):
            (left, top, right, bottom), (x, y, far, low) = found[-1], word.box
            found[-1] = (min(left, x), min(top, y), max(right, far), max(bottom, low))
        else:
            found.append(word.box)
    return tuple(found)


def _goes_on(line: Box, word: Box) -> bool:
    """Whether a word stands behind another one, in its line."""
    shared = min(line[3], word[3]) - max(line[1], word[1])
    height = min(line[3] - line[1], word[3] - word[1])
    gap = word[0] - line[2]
    return shared > 0.4 * height and -0.01 < gap < 0.06


def _as_box(values: Any) -> Box:
    left, top, right, bottom = map(float, values)
    return left, top, right, bottom
