"""The text that a PDF holds for a page, and whether it says all that the page shows.

A scan may carry a scanner's stamp, a Bates number or an invisible dot as its text. That it has
text is then true and of no use. So the words are compared with the ink of the page as it is
drawn, whatever the ink consists of: images, glyphs drawn as curves, patterns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from llavakit._checks import checked
from llavakit.errors import DocumentError

if TYPE_CHECKING:
    from PIL import Image as PILImage

Box = tuple[float, float, float, float]
"""Left, top, right and bottom, as shares of the page's width and height as it is shown."""

MOST_BROKEN = 0.1
"""Most characters without a meaning (of all) in a text that is trusted."""
ENOUGH_INK = 0.5
"""Share of the page's ink that words have to cover for the text to be all of it."""
SOME_INK = 0.1
"""The same where there are :data:`ENOUGH_WORDS`: a page of text beside images."""
ENOUGH_WORDS = 20
"""Different words in the body of the page, of two letters or digits at least."""

_MARGIN = 0.07  # of the height, above and below: headers, stamps and numbers stand there
_ACROSS, _DOWN = 96, 128  # cells of the grid in which ink is counted
_CONTRAST = 48  # grey levels from the paper to what is ink
_INKED = 6  # of 255: mean of a cell that holds ink


@checked
@dataclass(frozen=True, slots=True)
class Word:
    """A word and where it stands on the page."""

    text: str
    box: Box


@checked
@dataclass(frozen=True, slots=True)
class TextLayer:
    """The text of a page.

    Attributes:
        text: the lines.
        words: the words with their boxes, in the order of the text; invisible ones, too.
        broken: share of characters without a meaning: replacement characters, private ones,
            control codes.
        ink: share of the page's ink that stands in the boxes of words.
    """

    text: str
    words: tuple[Word, ...] = ()
    broken: float = 0.0
    ink: float = 1.0

    @property
    def body_words(self) -> int:
        """Different words outside the margins."""
        return len({one.text.lower() for one in self.words if _counts(one)})

    @property
    def is_sound(self) -> bool:
        """Whether there is a text, and its characters have a meaning."""
        return bool(self.text.strip()) and self.broken <= MOST_BROKEN

    @property
    def is_whole(self) -> bool:
        """Whether the text says what the page shows, so that no model has to read it.

        It is sound, and its words cover half of the page's ink; or they are twenty different
        ones outside the margins and cover a tenth of it.
        """
        if not self.is_sound:
            return False
        if self.ink >= ENOUGH_INK:
            return True
        return self.ink >= SOME_INK and self.body_words >= ENOUGH_WORDS

    def to_dict(self) -> dict[str, Any]:
        """The layer in types of JSON."""
        words = [[one.text, *one.box] for one in self.words]
        return {"text": self.text, "words": words, "broken": self.broken, "ink": self.ink}

    @classmethod
    @checked
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The layer that :meth:`to_dict` wrote.

        Raises:
            DocumentError: it is none.
        """
        try:
            words = tuple(Word(text, (x, y, r, b)) for text, x, y, r, b in data["words"])
            return cls(data["text"], words, data["broken"], data["ink"])
        except (KeyError, TypeError, ValueError) as error:
            raise DocumentError(
                "This is no text layer as to_dict wrote it; read the page anew."
            ) from error


def _counts(word: Word) -> bool:
    middle = (word.box[1] + word.box[3]) / 2
    return _MARGIN < middle < 1 - _MARGIN and sum(map(str.isalnum, word.text)) >= 2


def broken_share(text: str, unmapped: int = 0) -> float:
    """The share of characters without a meaning.

    Args:
        text: any.
        unmapped: characters of which the renderer itself says that it does not know them.
    """
    shown = [one for one in text if not one.isspace()]
    return max(unmapped, sum(map(_is_broken, shown))) / len(shown) if shown else 0.0


def _is_broken(one: str) -> bool:
    code = ord(one)
    private = 0xE000 <= code <= 0xF8FF or code >= 0xF0000
    return private or code == 0xFFFD or code < 0x20 or 0x7F <= code < 0xA0


def covered_ink(image: PILImage.Image, boxes: Sequence[Box]) -> float:
    """The share of an image's ink that lies in boxes; 1 where there is none.

    Ink is what differs from the paper, which is the most frequent grey.
    """
    from PIL import Image, ImageChops, ImageDraw

    grey = image.convert("L")
    counts = grey.histogram()
    paper = Image.new("L", grey.size, counts.index(max(counts)))
    ink = ImageChops.difference(grey, paper).point([255 * (at > _CONTRAST) for at in range(256)])
    grid = ink.resize((_ACROSS, _DOWN), Image.Resampling.BOX)
    inked = grid.point([255 * (at >= _INKED) for at in range(256)])
    words = Image.new("L", grid.size, 0)
    draw = ImageDraw.Draw(words)
    for left, top, right, bottom in boxes:
        # A cell that a box only touches is its own: letters reach over their boxes.
        corners = (int(left * _ACROSS), int(top * _DOWN), int(right * _ACROSS), int(bottom * _DOWN))
        draw.rectangle(corners, fill=255)
    total = inked.histogram()[255]
    return ImageChops.multiply(inked, words).histogram()[255] / total if total else 1.0


def with_layer(read: str, layer: TextLayer | None) -> str:
    """Return what a model read on a page, and below it the lines of the page's own text.

    A stamp or a number is text that pages are looked for by, and exact where a model may err.
    Lines that the model has read as well, and those without a word, are not repeated.
    """
    if layer is None or not layer.is_sound:
        return read
    seen = " ".join(read.split()).casefold()
    lines = [line for line in layer.text.splitlines() if sum(map(str.isalnum, line)) >= 2]
    new = [line for line in lines if " ".join(line.split()).casefold() not in seen]
    return "\n".join([read, *new]).strip() if new else read
