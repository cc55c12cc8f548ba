"""PDFs drawn for tests: turned pages, scans with little text upon them, forms."""

from __future__ import annotations

import io
import random

from PIL import Image, ImageDraw

from tests.documents.hostile import CATALOGUE, PAGES, pdf, stream

HELVETICA = "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>"
WORDS = ["alpha", "beta", "gamma", "delta", "kappa", "lambda", "omega", "sigma", "theta", "zeta"]
SIZE = (400, 600)


def sheet(
    content: str,
    *more: str | bytes,
    box: tuple[int, int] = SIZE,
    page: str = "",
    resources: str = "",
    catalogue: str = "",
) -> bytes:
    """A PDF of one page with Helvetica as /F; further objects are numbered from 6."""
    leaf = f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 {box[0]} {box[1]}] /Contents 4 0 R {page} "
    leaf += f"/Resources << /Font << /F 5 0 R >> {resources} >> >>"
    first = CATALOGUE.replace(">>", f"{catalogue} >>")
    return pdf(first, PAGES, leaf, stream(content), HELVETICA, *more)


def turned(turn: int, lines: list[tuple[int, int, str]], *, lean: int = 0) -> bytes:
    """A page that is turned by ``turn`` degrees, with lines at places of the page as it is shown.

    Args:
        turn: /Rotate of the page.
        lines: x, y from the top, and text, in the order of the contents.
        lean: degrees, clockwise, by which the text is turned as it is shown.
    """
    width, height = SIZE
    box = SIZE if turn in (0, 180) else SIZE[::-1]
    steps = {0: (1, 0), 90: (0, -1), 180: (-1, 0), 270: (0, 1)}[lean]  # cos, -sin; upwards is +
    ops = []
    for x, down, text in lines:
        place = {
            0: (x, height - down),
            90: (down, x),
            180: (width - x, down),
            270: (height - down, width - x),
        }[turn]
        c, s = steps
        for _ in range(turn // 90):
            c, s = -s, c
        ops.append(f"BT /F 14 Tf {c} {s} {-s} {c} {place[0]} {place[1]} Tm ({text}) Tj ET")
    return sheet("\n".join(ops), box=box, page=f"/Rotate {turn}")


def shuffled(seed: int, lean: int = 0) -> tuple[list[tuple[int, int, str]], list[str]]:
    """Lines of words in no order, some with a second cell, and the words in reading order."""
    chance = random.Random(seed)
    rows: list[tuple[int, int, str]] = []
    for at in range(8):
        rows.append((40, 60 + 40 * at, f"{chance.choice(WORDS)} {chance.choice(WORDS)} {at}"))
        if chance.random() < 0.4:
            rows.append((230, 60 + 40 * at, f"{chance.choice(WORDS)} {at}b"))
    expected = [word for _, _, text in rows for word in text.split()]
    if lean:  # the same as seen by a reader who turns the sheet
        width, height = SIZE
        turn = {
            90: lambda x, y: (width - y, x),
            180: lambda x, y: (width - x, height - y),
            270: lambda x, y: (y, height - x),
        }[lean]
        rows = [(*turn(x, y), text) for x, y, text in rows]
    chance.shuffle(rows)
    return rows, expected


def invoice(lines: int = 24) -> Image.Image:
    """A dense page of print, as a scanner sees it."""
    image = Image.new("RGB", (SIZE[0] * 2, SIZE[1] * 2), (250, 249, 245))
    draw = ImageDraw.Draw(image)
    for at in range(lines):
        draw.text((60, 60 + 44 * at), f"Line {at}: goods of the kind {at * 37} at a price", fill=0)
    return image


def scan(text: str = "", image: Image.Image | None = None, *, page: str = "") -> bytes:
    """A page that is one JPEG, with text upon it; ``text`` is a content stream."""
    jpeg = io.BytesIO()
    image = image or invoice()
    image.save(jpeg, "JPEG", quality=90)
    picture = stream(
        jpeg.getvalue(),
        f"/Type /XObject /Subtype /Image /Width {image.width} /Height {image.height} "
        "/BitsPerComponent 8 /ColorSpace /DeviceRGB /Filter /DCTDecode",
    )
    drawn = f"q {SIZE[0]} 0 0 {SIZE[1]} 0 0 cm /I Do Q {text}"
    return sheet(drawn, picture, resources="/XObject << /I 6 0 R >>", page=page)


def print_lines(lines: list[str], x: int = 40, top: int = 550, mode: int = 0) -> str:
    """A content stream of lines of print."""
    shown = (f"BT {mode} Tr /F 9 Tf {x} {top - 22 * at} Td ({line}) Tj ET"
             for at, line in enumerate(lines))  # fmt: skip
    return " ".join(shown)


def form(field: str, *more: str | bytes) -> bytes:
    """A form with one field (or annotation), which is object 6; further objects from 7."""
    acroform = "/AcroForm << /Fields [6 0 R] /DR << /Font << /F 5 0 R >> >> /DA (/F 14 Tf 0 g) >>"
    content = "BT /F 20 Tf 40 540 Td (APPLICATION) Tj 0 -60 Td (Name:) Tj 0 -60 Td (Signed) Tj ET"
    return sheet(content, field, *more, page="/Annots [6 0 R]", catalogue=acroform)


FIELD = "<< /Type /Annot /Subtype /Widget /P 3 0 R /Rect [140 470 360 500] /DA (/F 14 Tf 0 g) "
