"""Small documents for indices: pages of a colour, with words or without."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from tests.documents.test_pages import pdf
from tests.retrieval.colours import COLOURS


def coloured(*pages: str, words: str = "") -> bytes:
    """A PDF whose pages are of these colours, each with a word of its own for a text layer."""
    contents = []
    for number, colour in enumerate(pages, 1):
        red, green, blue = (one / 255 for one in COLOURS[colour])
        text = f"BT /F 6 Tf 1 1 1 rg 4 120 Td ({words} {number}) Tj ET" if words else ""
        contents.append(f"{red} {green} {blue} rg 0 0 72 144 re f {text}")
    return pdf(*contents)


def picture(path: Path, colour: str, part: str = "", size: tuple[int, int] = (60, 60)) -> Path:
    """An image of a colour; its lower right quarter of another one, where ``part`` names it."""
    image = Image.new("RGB", size, COLOURS[colour])
    if part:
        image.paste(COLOURS[part], (size[0] // 2, size[1] // 2, *size))
    image.save(path)
    return path
