"""The example pictures of the project: files, and questions with the answers that are right.

Everything is drawn from seeds, so the files can be made again. Whether a model answers the
questions is not known here; see :mod:`examples.demo_model.example_files`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

from PIL import Image

from .asked import caption
from .pages import Page, clean_page, draw_page, random_page, write_pdf
from .scenes import COLOURS, RGB, Scene, Shape, draw_scene

ORIENTATION = 0x0112
"""The EXIF tag that says how a camera was held; 6: turn clockwise to look at it."""


@dataclass(frozen=True)
class Example:
    """A question about one or more files (and a page of a PDF, from 1) and its answer."""

    files: tuple[str, ...]
    question: str
    answer: str
    page: int | None = None

    def as_json(self) -> dict[str, object]:
        """Return the entry of ``questions.json``: ``file`` for one, ``files`` for several."""
        one = len(self.files) == 1
        entry: dict[str, object] = {"file": self.files[0]} if one else {"files": list(self.files)}
        if self.page is not None:
            entry["page"] = self.page
        return {**entry, "question": self.question, "answer": self.answer}


def arranged(seed: str, *wanted: tuple[str, str, float, float], size: tuple[int, int]) -> Scene:
    """Return a scene of given shapes (colour, kind, x, y), moved and sized a little by the seed."""
    rng = Random(seed)
    background: RGB = rng.choice(((255, 255, 255), (245, 240, 225), (225, 235, 245)))
    shapes = tuple(
        Shape(
            kind,
            colour,
            COLOURS[colour][0],
            x + rng.uniform(-0.02, 0.02),
            y + rng.uniform(-0.02, 0.02),
            rng.uniform(0.26, 0.31),
        )
        for colour, kind, x, y in wanted
    )
    return Scene(*size, "", background, shapes)


def scenes(seed: int) -> dict[str, Scene]:
    """Return the scenes of the examples by file name."""
    low, middle, high = 1 / 6, 1 / 2, 5 / 6
    return {
        "shapes.png": arranged(
            f"examples-{seed}-1",
            ("red", "circle", low, low),
            ("blue", "square", high, low),
            ("green", "triangle", middle, high),
            size=(384, 384),
        ),
        "rotated.jpg": arranged(
            f"examples-{seed}-2",
            ("yellow", "star", low, middle),
            ("purple", "heart", high, middle),
            size=(360, 480),
        ),
        "wide.webp": arranged(
            f"examples-{seed}-3",
            ("orange", "diamond", low, high),
            ("black", "cross", middle, low),
            ("blue", "star", high, middle),
            size=(480, 360),
        ),
        "heart.png": arranged(
            f"examples-{seed}-4", ("red", "heart", middle, middle), size=(256, 256)
        ),
        "squares.png": arranged(
            f"examples-{seed}-5",
            ("blue", "square", low, low),
            ("blue", "square", high, middle),
            ("red", "square", middle, high),
            ("green", "star", low, high),
            size=(320, 320),
        ),
    }


def pages(seed: int) -> tuple[Page, list[Page]]:
    """Return the invoice and the pages of the PDF."""
    rng = Random(f"examples-{seed}-pages")
    invoice = replace(clean_page(random_page(rng)), title="INVOICE", name="ANNA", page=None)
    titles = ("REPORT", "INVOICE", "RECEIPT", "CONTRACT")
    bound = [
        replace(clean_page(random_page(rng)), title=title, page=number, style="regular")
        for number, title in enumerate(titles, 1)
    ]
    return replace(invoice, style="regular"), bound


def write_files(folder: Path, seed: int) -> list[Example]:
    """Draw the files into a folder; return the questions about them."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = scenes(seed)
    invoice, bound = pages(seed)
    for name, scene in drawn.items():
        image = draw_scene(scene)
        if name == "rotated.jpg":
            exif = Image.Exif()
            exif[ORIENTATION] = 6
            # Stored lying on its side, as a camera does that is held upright.
            image.transpose(Image.Transpose.ROTATE_90).save(folder / name, quality=90, exif=exif)
        elif name.endswith(".webp"):
            image.save(folder / name, quality=90)
        else:
            image.save(folder / name)
    draw_page(invoice).save(folder / "invoice.png")
    write_pdf(bound, folder / "pages.pdf")
    number = str(bound[1].number)
    return [
        Example(("shapes.png",), "What colour is the circle?", "red"),
        Example(("shapes.png",), "What color is the square?", "blue"),
        Example(("shapes.png",), "How many shapes are there?", "3"),
        Example(("shapes.png",), "Where is the green triangle?", "bottom"),
        Example(("shapes.png",), "Describe this image.", caption(drawn["shapes.png"])),
        Example(("rotated.jpg",), "Which shape is yellow?", "star"),
        Example(("rotated.jpg",), "Is the star left or right of the heart?", "left"),
        Example(("wide.webp",), "What colour is the diamond?", "orange"),
        Example(("wide.webp",), "Is there a red circle?", "no"),
        Example(("heart.png",), "What is in this picture?", "a red heart"),
        Example(("squares.png",), "How many squares are there?", "3"),
        Example(("invoice.png",), "What is the invoice number?", str(invoice.number)),
        Example(("invoice.png",), "What is the total?", str(invoice.total)),
        Example(("invoice.png",), "What is the title?", "INVOICE"),
        Example(("invoice.png",), "Read the page.", invoice.text()),
        Example(("pages.pdf",), "What is the invoice number?", number, page=2),
        Example(("pages.pdf",), "What is the title?", "CONTRACT", page=4),
        Example(("pages.pdf",), "What is the total?", str(bound[2].total), page=3),
        Example(("heart.png", "shapes.png"), "Which image shows a heart?", "the first image"),
        Example(("heart.png", "wide.webp"), "What colour is the star in the second image?", "blue"),
    ]
