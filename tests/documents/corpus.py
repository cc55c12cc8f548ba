"""Files as offices have them, of thirty kinds, each drawn anew for a seed.

Each kind is a function of a seeded ``random.Random`` that gives the bytes of a file and the
number of pages that it declares.
"""

from __future__ import annotations

import io
import random
import zipfile
from collections.abc import Callable

from PIL import Image, ImageDraw

from tests.documents.drawn import invoice, print_lines, scan, sheet, shuffled, turned
from tests.documents.hostile import CATALOGUE, pdf, stream
from tests.documents.tiffs import bits, dpi, kind, written

Made = tuple[bytes, int]
KINDS: dict[str, Callable[[random.Random], Made]] = {}


def of_kind(make: Callable[[random.Random], Made]) -> Callable[[random.Random], Made]:
    KINDS[make.__name__.replace("_", " ")] = make
    return make


def drawing(chance: random.Random, size: tuple[int, int] = (120, 160), mode: str = "RGB"):
    image = Image.new("RGB", size, tuple(chance.randrange(180, 256) for _ in range(3)))
    draw = ImageDraw.Draw(image)
    for _ in range(6):
        x, y = chance.randrange(size[0]), chance.randrange(size[1])
        draw.text((x, y), f"text {chance.randrange(1000)}", fill=0)
    return image.convert(mode)


def several(chance: random.Random, most: int = 6) -> int:
    return chance.randint(2, most)


def saved(image: Image.Image, form: str, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def tiff_of(chance: random.Random, mode: str, **options) -> Made:
    count = several(chance)
    images = [drawing(chance, mode=mode) for _ in range(count)]
    return saved(images[0], "TIFF", save_all=True, append_images=images[1:], **options), count


@of_kind
def fax_group_3(chance):
    return tiff_of(chance, "1", compression="group3", dpi=(204, 98))


@of_kind
def fax_group_4(chance):
    return tiff_of(chance, "1", compression="group4", dpi=(204, 196))


@of_kind
def tiff_lzw(chance):
    return tiff_of(chance, "L", compression="tiff_lzw")


@of_kind
def tiff_jpeg(chance):
    return tiff_of(chance, "RGB", compression="jpeg")


@of_kind
def tiff_cmyk(chance):
    return tiff_of(chance, "CMYK")


@of_kind
def tiff_in_rows(chance):
    count = several(chance, 12)
    return written(*[bits((64, chance.randint(50, 400)), rows=1) for _ in range(count)]), count


@of_kind
def tiff_with_thumbnails(chance):
    count = several(chance)
    frames = [
        frame for _ in range(count) for frame in (bits((60, 80), kind(2)), bits((6, 8), kind(1)))
    ]
    return written(*frames, order=chance.choice("<>")), count  # fmt: skip


@of_kind
def tiff_pyramids(chance):
    count = several(chance)
    small = [bits((30, 40), kind(1)), bits((15, 20), kind(1))]
    frames = [bits((60, 80), *dpi(chance.choice([100, 204]), 100), subs=small)] * count
    return written(*frames), count


@of_kind
def tiff_torn(chance):
    count = several(chance)
    data = written(*[bits((60, 80))] * count)
    return data[:-4] + b"\xff\xff\xff\x7f", count + 1  # the link that leads nowhere is a page


@of_kind
def tiff_of_unknown_codecs(chance):
    count = several(chance)
    codes = [(259, 3, [chance.choice([34712, 34887, 34661, 1, 4711])]) for _ in range(count)]
    return written(*[bits((60, 80), code) for code in codes]), count


@of_kind
def bigtiff(chance):
    import numpy as np
    import tifffile

    count, out = several(chance), io.BytesIO()
    with tifffile.TiffWriter(out, bigtiff=True) as file:
        for _ in range(count):
            page = np.asarray(drawing(chance, mode="L"))
            file.write(page, contiguous=False, compression="zlib", metadata=None)
    return out.getvalue(), count


def reportlab_pdf(chance: random.Random, **options) -> Made:
    from reportlab.pdfgen.canvas import Canvas

    count, out = several(chance, 9), io.BytesIO()
    canvas = Canvas(out, pagesize=(200, 280), **options)
    for number in range(count):
        canvas.setFont("Helvetica", 9)
        for at in range(chance.randint(1, 9)):
            canvas.drawString(20, 250 - 20 * at, f"page {number} line {chance.randrange(999)}")
        canvas.showPage()
    canvas.save()
    return out.getvalue(), count


@of_kind
def pdf_of_print(chance):
    return reportlab_pdf(chance)


@of_kind
def pdf_compressed(chance):
    return reportlab_pdf(chance, pageCompression=1)


def again(data: bytes, **options) -> bytes:
    import pikepdf

    out = io.BytesIO()
    with pikepdf.open(io.BytesIO(data)) as document:
        document.save(out, **options)
    return out.getvalue()


@of_kind
def pdf_with_object_streams(chance):
    import pikepdf

    data, count = reportlab_pdf(chance)
    return again(data, object_stream_mode=pikepdf.ObjectStreamMode.generate), count


@of_kind
def pdf_linearised(chance):
    data, count = reportlab_pdf(chance)
    return again(data, linearize=True), count


@of_kind
def pdf_with_an_owner(chance):
    import pikepdf

    data, count = reportlab_pdf(chance)
    return again(data, encryption=pikepdf.Encryption(user="", owner="owner")), count


@of_kind
def pdf_of_scans(chance):
    import img2pdf

    count = several(chance)
    return img2pdf.convert([saved(drawing(chance), "JPEG") for _ in range(count)]), count


@of_kind
def pdf_of_faxes(chance):
    import img2pdf

    data, count = fax_group_4(chance)
    return img2pdf.convert(data), count


@of_kind
def pdf_scan_with_a_stamp(chance):
    stamp = f"BT /F 5 Tf {chance.randrange(300)} 4 Td (ACME-{chance.randrange(9999)}) Tj ET"
    return scan(stamp, invoice(chance.randint(4, 24))), 1


@of_kind
def pdf_turned(chance):
    return turned(chance.choice([90, 180, 270]), shuffled(chance.randrange(99))[0]), 1


@of_kind
def pdf_form(chance):
    from reportlab.pdfgen.canvas import Canvas

    count, out = several(chance, 4), io.BytesIO()
    canvas = Canvas(out, pagesize=(300, 300))
    for at in range(count):
        canvas.drawString(20, 260, "Name:")
        canvas.acroForm.textfield(name=f"n{at}", value=f"value {chance.randrange(99)}", x=80, y=250)
        canvas.acroForm.checkbox(name=f"c{at}", checked=True, x=80, y=200)
        canvas.showPage()
    canvas.save()
    return out.getvalue(), count


@of_kind
def pdf_with_lost_pages(chance):
    count = several(chance, 8)
    kids = " ".join(f"{chance.choice([3, 3, 99])} 0 R" for _ in range(count - 1))
    leaf = "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 72 72] >>"
    return pdf(CATALOGUE, f"<< /Type /Pages /Kids [3 0 R {kids}] /Count {count} >>", leaf), count


@of_kind
def pdf_of_more_bad_pages_than_are_tried(chance):
    count = chance.randint(130, 5000)
    leaf = "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 72 72] >>"
    return pdf(CATALOGUE, f"<< /Type /Pages /Kids [3 0 R] /Count {count} >>", leaf), count


@of_kind
def pdf_of_absurd_boxes(chance):
    box = chance.choice(["0 0 0 0", "0 0 1e9 1", "-5 -5 -1 -1", "9 9 0 0", "0 0 14400 14400"])
    leaf = f"<< /Type /Page /Parent 2 0 R /MediaBox [{box}] /Contents 4 0 R >>"
    pages = "<< /Type /Pages /Kids [3 0 R] /Count 1 >>"
    return pdf(CATALOGUE, pages, leaf, stream("1 0 0 rg 0 0 9 9 re f")), 1


@of_kind
def archive_of_images(chance):
    return zipped(chance, {"png": lambda: saved(drawing(chance), "PNG")})


@of_kind
def comic_with_folders(chance):
    kinds = {
        "jpg": lambda: saved(drawing(chance), "JPEG"),
        "webp": lambda: saved(drawing(chance), "WEBP"),
    }
    return zipped(chance, kinds)  # fmt: skip


@of_kind
def archive_with_damage(chance):
    kinds = {
        "png": lambda: saved(drawing(chance), "PNG"),
        "pdf": lambda: b"%PDF-1.7 no",
        "jpg": bytes,
    }
    return zipped(chance, kinds)  # fmt: skip


def zipped(chance: random.Random, kinds: dict[str, Callable[[], bytes]]) -> Made:
    count, out = several(chance, 12), io.BytesIO()
    with zipfile.ZipFile(
        out, "w", chance.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
    ) as file:
        for at in range(count):
            suffix = chance.choice(list(kinds))
            file.writestr(f"part {at % 3}/{at}.{suffix}", kinds[suffix]())
        file.writestr("readme.txt", "not a page")
    return out.getvalue(), count  # fmt: skip


@of_kind
def archive_of_documents(chance):
    out, count = io.BytesIO(), 0
    with zipfile.ZipFile(out, "w") as file:
        for name in chance.sample(["tiff lzw", "pdf of print", "tiff torn", "fax group 4"], 3):
            data, pages = KINDS[name](chance)
            file.writestr(f"{name}{'.pdf' if 'pdf' in name else '.tif'}", data)
            count += pages
    return out.getvalue(), count


@of_kind
def heic(chance):
    import pillow_heif

    count, file, out = several(chance, 3), pillow_heif.HeifFile(), io.BytesIO()
    for _ in range(count):
        file.add_from_pillow(drawing(chance))
    file.save(out)
    return out.getvalue(), count


@of_kind
def image_by_itself(chance):
    form = chance.choice(["PNG", "JPEG", "WEBP", "GIF", "BMP", "PPM", "JPEG2000", "AVIF"])
    return saved(drawing(chance), form), 1


@of_kind
def animated_image(chance):
    images = [drawing(chance) for _ in range(3)]
    form = chance.choice(["GIF", "WEBP", "PNG"])
    return saved(images[0], form, save_all=True, append_images=images[1:]), 1


@of_kind
def print_by_hand(chance):
    return sheet(
        print_lines([f"line {chance.randrange(99)}" for _ in range(chance.randint(1, 20))])
    ), 1
