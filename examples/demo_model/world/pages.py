"""The demo model's second world: small printed pages with a title and a few fields.

One layout on purpose: a page is a board of 8 lines of 16 characters, so that a model that sees
128 x 128 pixels can read it. :func:`draw_page` draws with the font that comes inside Pillow, so
the pictures do not depend on the machine's fonts.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from .scenes import RGB, through_codec

TITLES = (
    "INVOICE",
    "RECEIPT",
    "REPORT",
    "LETTER",
    "MENU",
    "NOTICE",
    "TICKET",
    "ORDER",
    "RECIPE",
    "CONTRACT",
    "MANUAL",
    "CALENDAR",
    "BUDGET",
    "AGENDA",
    "MEMO",
    "QUOTE",
    "FORM",
    "SURVEY",
    "STATEMENT",
    "LICENSE",
)
NAMES = (
    "ANNA",
    "BORIS",
    "CLARA",
    "DAVID",
    "EMMA",
    "FELIX",
    "GRACE",
    "HUGO",
    "IRIS",
    "JONAS",
    "KAREN",
    "LEO",
    "MARIA",
    "NINA",
    "OSCAR",
    "PAULA",
    "ROSA",
    "SIMON",
    "TINA",
    "VICTOR",
)
COLUMNS, ROWS = 16, 8
TITLE_ROW, NUMBER_ROW, TOTAL_ROW, NAME_ROW, PAGE_ROW = 1, 3, 4, 5, 6
FIRST_COLUMN = 2
STYLES = ("regular", "bold", "slanted")
CHARACTERS = tuple(sorted(set("".join(TITLES + NAMES) + "0123456789No.TotalNamePage")))
"""Every character that can stand on a page."""


@dataclass(frozen=True)
class Page:
    """What is printed on a page, and how; ``dx``/``dy`` are shifts in 1/128 of the side."""

    title: str
    number: int
    total: int
    name: str | None = None
    page: int | None = None
    size: int = 512
    style: str = "regular"
    paper: RGB = (255, 255, 255)
    ink: RGB = (0, 0, 0)
    dx: float = 0.0
    dy: float = 0.0
    scale: float = 1.0
    centred: bool = False
    rule: bool = True
    border: int = 0
    codec: str = ""
    quality: int = 85
    shown_at: int = 0

    def lines(self) -> tuple[tuple[int, int, str], ...]:
        """Return (row, first column, text) of every printed line, from the top."""
        start = (COLUMNS - len(self.title)) // 2 if self.centred else FIRST_COLUMN
        printed = [(TITLE_ROW, start, self.title)]
        printed.append((NUMBER_ROW, FIRST_COLUMN, f"No. {self.number}"))
        printed.append((TOTAL_ROW, FIRST_COLUMN, f"Total {self.total}"))
        if self.name is not None:
            printed.append((NAME_ROW, FIRST_COLUMN, f"Name {self.name}"))
        if self.page is not None:
            printed.append((PAGE_ROW, FIRST_COLUMN, f"Page {self.page}"))
        return tuple(printed)

    def text(self) -> str:
        """Return the printed text, one line a line."""
        return "\n".join(line for _, _, line in self.lines())

    def centre(self, row: int, column: int) -> tuple[float, float]:
        """Return the centre of a character's cell as fractions of the page's side."""
        x = 0.5 + self.scale * ((column + 0.5) / COLUMNS - 0.5) + self.dx / 128
        y = 0.5 + self.scale * ((row + 0.5) / ROWS - 0.5) + self.dy / 128
        return x, y


@lru_cache(maxsize=4096)
def glyph(character: str, height: int, width: int, style: str) -> Image.Image:
    """Return the character as a grey mask at most ``width`` pixels wide, on a cell of its own."""
    font = ImageFont.load_default(height)
    stroke = max(1, height // 22) if style == "bold" else 0
    canvas = Image.new("L", (2 * height, 2 * height), 0)
    pen = ImageDraw.Draw(canvas)
    pen.text((height, height * 1.35), character, 255, font, "ms", stroke_width=stroke)
    if style == "slanted":
        lean = 0.2
        canvas = canvas.transform(
            canvas.size,
            Image.Transform.AFFINE,
            (1, lean, -lean * height, 0, 1, 0),
            Image.Resampling.BILINEAR,
        )
    box = canvas.getbbox()
    if box is None:
        raise ValueError(f"nothing to print for {character!r}")
    mask = canvas.crop((box[0], 0, box[2], canvas.height))
    if mask.width > width:
        mask = mask.resize((width, mask.height), Image.Resampling.BILINEAR)
    return mask


def draw_page(page: Page) -> Image.Image:
    """Draw a page as a square RGB picture of ``page.size`` pixels (``shown_at`` if given)."""
    image = Image.new("RGB", (page.size, page.size), page.paper)
    pen = ImageDraw.Draw(image)
    cell = page.size * page.scale / COLUMNS
    height = round(cell * 1.7)
    for row, first, text in page.lines():
        for offset, character in enumerate(text):
            if character == " ":
                continue
            mask = glyph(character, height, round(cell * 0.98), page.style)
            x, y = page.centre(row, first + offset)
            left = round(x * page.size - mask.width / 2)
            image.paste(page.ink, (left, round(y * page.size - height)), mask)
    if page.rule:
        y = page.centre(TITLE_ROW + 1, 0)[1] * page.size
        margin = page.size * 0.1
        width = max(2, page.size // 160)
        pen.line((margin, y, page.size - margin, y), fill=page.ink, width=width)
    if page.border:
        edge = page.size - 1
        pen.rectangle((0, 0, edge, edge), outline=page.ink, width=page.border)
    if page.shown_at and page.shown_at != page.size:
        side = (page.shown_at, page.shown_at)
        image = image.resize(side, Image.Resampling.BILINEAR, reducing_gap=2.0)
    return through_codec(image, page.codec, page.quality)


def random_page(rng: random.Random) -> Page:
    """Return a page with random content and look; equal generators give equal pages."""
    paper = rng.choice(((255, 255, 255), (255, 255, 255), (250, 246, 232), (238, 238, 238)))
    ink = rng.choice(((0, 0, 0), (0, 0, 0), (20, 25, 70), (60, 60, 60)))
    return Page(
        title=rng.choice(TITLES),
        number=rng.randint(10 ** (digits := rng.choice((3, 4, 4, 5, 5))) // 10, 10**digits - 1),
        total=rng.randint(10 ** (places := rng.choice((2, 3, 3, 4))) // 10, 10**places - 1),
        name=rng.choice(NAMES) if rng.random() < 0.55 else None,
        page=rng.randint(1, 99 if rng.random() < 0.3 else 9) if rng.random() < 0.35 else None,
        size=rng.choice((400, 512)),
        style=rng.choice(STYLES),
        paper=paper,
        ink=ink,
        dx=rng.uniform(-2, 2),
        dy=rng.uniform(-2, 2),
        scale=rng.uniform(0.97, 1.02),
        centred=rng.random() < 0.2,
        rule=rng.random() < 0.7,
        border=rng.choice((0, 0, 0, 2, 4)),
        codec=rng.choice(("", "", "JPEG", "WEBP")),
        quality=rng.randint(60, 95),
        shown_at=rng.choice((0, 0, rng.randint(300, 900))),
    )


def clean_page(page: Page, size: int = 512) -> Page:
    """Return the same content as a program would print it: black on white, no jitter, no codec."""
    return replace(
        page, size=size, paper=(255, 255, 255), ink=(0, 0, 0), dx=0.0, dy=0.0, scale=1.0, border=0,
        codec="", shown_at=0,
    )  # fmt: skip


def write_pdf(pages: list[Page], path: str | Path, *, points: float = 360.0) -> None:
    """Write the pages as a PDF whose pages are ``points`` x ``points`` (72 points an inch)."""
    pictures = [draw_page(page) for page in pages]
    pictures[0].save(
        path,
        "PDF",
        save_all=True,
        append_images=pictures[1:],
        resolution=pages[0].size * 72.0 / points,
        quality=95,
    )
