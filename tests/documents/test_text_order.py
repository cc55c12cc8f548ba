"""The order of text, compared with another renderer's (poppler's pdftotext -layout)."""

import io
import random
import shutil
import subprocess

import pytest

from llavakit.documents import open_pages
from tests.documents.drawn import FIELD, WORDS, form, print_lines, sheet, shuffled, turned

pytestmark = [
    pytest.mark.timeout(60),
    pytest.mark.skipif(shutil.which("pdftotext") is None, reason="poppler is not installed"),
]


def by_poppler(data, *options):
    command = ["pdftotext", *options, "-", "-"]
    done = subprocess.run(command, input=data, capture_output=True, check=True, timeout=30)
    return done.stdout.decode().split()


def ours(data):
    return [word for page in open_pages(data, text=True) for word in page.text.split()]


def reportlab(draw, size=(400, 600)):
    from reportlab.pdfgen.canvas import Canvas

    out = io.BytesIO()
    canvas = Canvas(out, pagesize=size)
    draw(canvas)
    canvas.save()
    return out.getvalue()


def table(seed, rotate=0):
    """A table; one that is turned is drawn column by column, as columns of text are."""
    chance = random.Random(seed)

    def draw(canvas):
        canvas.setPageRotation(rotate)
        cells = [(column, row) for column in range(4) for row in range(9)]
        for column, row in cells if rotate else sorted(cells, key=lambda cell: cell[1]):
            canvas.drawString(40 + 85 * column, 540 - 40 * row, f"{chance.choice(WORDS)}{row}")

    return reportlab(draw)


def pages(seed):
    """Some pages of print, each turned in its own way."""
    chance = random.Random(seed)

    def draw(canvas):
        for turn in (0, 90, 180, 270):
            canvas.setPageRotation(turn)
            for at in range(6):
                words = " ".join(chance.choices(WORDS, k=3))
                canvas.drawString(50, 520 - 60 * at, f"{words} {turn} {at}")
            canvas.showPage()

    return reportlab(draw, (600, 600))


def acroform(seed):
    chance = random.Random(seed)

    def draw(canvas):
        for at, name in enumerate(("Name", "Street", "City", "Date")):
            canvas.drawString(40, 500 - 80 * at, f"{name}:")
            canvas.acroForm.textfield(
                name=name, value=f"{chance.choice(WORDS)} {at}", x=140, y=494 - 80 * at,
                width=200, height=24,
            )  # fmt: skip

    return reportlab(draw)


def fields(seed):
    """Two fields in a row, of several lines, and a box that is ticked, without words."""
    chance = random.Random(seed)

    def draw(canvas):
        for row in range(3):
            for column in range(2):
                canvas.drawString(30 + 180 * column, 500 - 90 * row, f"Label{column}{row}:")
                canvas.acroForm.textfield(
                    name=f"n{row}{column}", value=f"{chance.choice(WORDS)} {row}{column}",
                    x=100 + 180 * column, y=494 - 90 * row, width=90, height=22,
                )  # fmt: skip
            canvas.acroForm.checkbox(name=f"c{row}", checked=True, x=370, y=494 - 90 * row)

    return reportlab(draw)


def sizes(seed):
    """Words of several sizes in one row, and rows of several heights."""
    chance = random.Random(seed)

    def draw(canvas):
        for row in range(7):
            x = 40
            for _ in range(3):
                size = chance.choice([8, 10, 14, 18])
                canvas.setFont("Helvetica", size)
                word = f"{chance.choice(WORDS)}{row}"
                canvas.drawString(x, 540 - 60 * row, word)
                x += canvas.stringWidth(word, "Helvetica", size) + 30

    return reportlab(draw)


FILES = {
    **{f"turned {turn}": turned(turn, shuffled(turn)[0]) for turn in (0, 90, 180, 270)},
    **{f"leaning {lean}": turned(0, shuffled(lean, lean)[0], lean=lean) for lean in (90, 180, 270)},
    **{
        f"turned {turn}, leaning {lean}": turned(turn, shuffled(7, lean)[0], lean=lean)
        for turn, lean in ((90, 270), (270, 90), (180, 180))
    },
    "table": table(1),
    "table turned": table(2, 90),
    "table on its head": table(3, 180),
    "four pages": pages(4),
    "form": acroform(5),
    "another form": acroform(6),
    "form in two columns": fields(10),
    "form by hand": form(f"{FIELD} /FT /Tx /T (n) /V (Anna Oscar) /F 4 >>"),
    "print": sheet(print_lines([f"line {at} alpha beta" for at in range(15)])),
    "sizes": sizes(8),
    "more sizes": sizes(9),
}


def test_there_are_twenty():
    assert len(FILES) >= 20


@pytest.mark.parametrize("name", FILES)
def test_words_come_in_the_order_of_poppler(name):
    assert ours(FILES[name]) == by_poppler(FILES[name], "-layout")


def test_columns_stay_columns_where_poppler_reads_across():
    """Upright pages keep the order of their contents, in which columns are drawn one by one."""

    def draw(canvas):
        for column in range(2):
            for row in range(8):
                canvas.drawString(40 + 180 * column, 540 - 20 * row, f"column{column} line{row}")

    data = reportlab(draw)
    expected = [
        word for at in range(2) for row in range(8) for word in (f"column{at}", f"line{row}")
    ]
    assert ours(data) == expected != by_poppler(data, "-layout")
