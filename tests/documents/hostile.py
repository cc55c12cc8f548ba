"""Documents made to do harm, byte by byte. Each builder gives the bytes of one."""

from __future__ import annotations

import io
import struct
import zlib

from PIL import Image


def pdf(*objects: str | bytes, trailer: str = "") -> bytes:
    """A PDF of numbered objects; the first is the catalogue."""
    body, offsets = b"%PDF-1.7\n", []
    for number, content in enumerate(objects, 1):
        raw = content if isinstance(content, bytes) else content.encode("latin-1")
        offsets.append(len(body))
        body += f"{number} 0 obj\n".encode() + raw + b"\nendobj\n"
    start = len(body)
    table = "".join(f"{offset:010} 00000 n \n" for offset in offsets)
    body += f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}".encode()
    end = f"trailer\n<< /Size {len(objects) + 1} /Root 1 0 R {trailer} >>\n"
    return body + f"{end}startxref\n{start}\n%%EOF\n".encode()


def stream(content: str | bytes, entries: str = "") -> bytes:
    raw = content if isinstance(content, bytes) else content.encode("latin-1")
    return f"<< /Length {len(raw)} {entries} >>\nstream\n".encode() + raw + b"\nendstream"


CATALOGUE = "<< /Type /Catalog /Pages 2 0 R >>"
PAGES = "<< /Type /Pages /Kids [3 0 R] /Count 1 >>"


def page(content: str | bytes, *more: str | bytes, box: str = "0 0 72 72", resources: str = ""):
    """A PDF of one page; further objects are numbered from 5."""
    leaf = f"<< /Type /Page /Parent 2 0 R /MediaBox [{box}] /Contents 4 0 R "
    return pdf(CATALOGUE, PAGES, f"{leaf}/Resources << {resources} >> >>", stream(content), *more)


RED = "1 0 0 rg 0 0 99999 99999 re f"


def nested_forms(levels: int = 12, fan: int = 10) -> bytes:
    """The billion laughs: each form draws the next one ``fan`` times."""
    kind = "/Type /XObject /Subtype /Form /BBox [0 0 72 72] "
    forms = [
        stream("/X Do " * fan, f"{kind} /Resources << /XObject << /X {6 + n} 0 R >> >>")
        for n in range(levels)
    ]
    forms.append(stream(RED, kind))
    return page("/X Do", *forms, resources="/XObject << /X 5 0 R >>")


def form_of_itself() -> bytes:
    kind = "/Type /XObject /Subtype /Form /BBox [0 0 72 72] "
    again = stream("/X Do /X Do", f"{kind} /Resources << /XObject << /X 5 0 R >> >>")
    return page("/X Do", again, resources="/XObject << /X 5 0 R >>")


def picture_in_pdf(filters: str, data: bytes, size: int = 64) -> bytes:
    picture = stream(
        data,
        f"/Type /XObject /Subtype /Image /Width {size} /Height {size} /BitsPerComponent 8 "
        f"/ColorSpace /DeviceGray /Filter {filters}",
    )
    return page("72 0 0 72 0 0 cm /X Do", picture, resources="/XObject << /X 5 0 R >>")


def flate_bomb(megabytes: int = 200) -> bytes:
    """A content stream that inflates a thousand times, twice over."""
    packer = zlib.compressobj(9)
    once = b"".join(packer.compress(b" " * 2**20) for _ in range(megabytes)) + packer.flush()
    twice = zlib.compress(once, 9)
    leaf = "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 72 72] /Contents 4 0 R >>"
    return pdf(CATALOGUE, PAGES, leaf, stream(twice, "/Filter [/FlateDecode /FlateDecode]"))


def encrypted() -> bytes:
    key = "<" + "41" * 32 + ">"
    lock = f"/Filter /Standard /V 2 /R 3 /Length 128 /P -4 /O {key} /U {key}"
    leaf = "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 72 72] >>"
    return pdf(CATALOGUE, PAGES, leaf, trailer=f"/Encrypt << {lock} >> /ID [<41414141> <41414141>]")


def tree(kids: str, count: int) -> bytes:
    leaf = "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 72 72] >>"
    return pdf(CATALOGUE, f"<< /Type /Pages /Kids [{kids}] /Count {count} >>", leaf)


def endless_objects() -> bytes:
    """Parents all the way up, and an outline that is its own child."""
    return pdf(
        "<< /Type /Catalog /Pages 2 0 R /Outlines 4 0 R >>",
        "<< /Type /Pages /Kids [3 0 R] /Count 1 /Parent 3 0 R >>",
        "<< /Type /Page /Parent 3 0 R /Contents 4 0 R >>",
        "<< /First 4 0 R /Last 4 0 R /Next 4 0 R /Length 4 0 R >>",
    )


def deep_arrays(depth: int = 200_000) -> bytes:
    return page(RED, "[" * depth + "]" * depth)


def tiff(*entries: tuple[int, int, int, int], next_ifd: int = 0, data: bytes = b"") -> bytes:
    """A little-endian TIFF of one directory at 8; entries are (tag, type, count, value)."""
    directory = struct.pack("<H", len(entries))
    directory += b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<I", 8) + directory + struct.pack("<I", next_ifd) + data


SHORT, LONG = 3, 4


def grey_tiff(
    *, size: tuple[int, int] = (8, 8), length: int = 64, next_ifd: int = 0, compression: int = 1
) -> bytes:
    """A grey image in one strip that claims ``length`` bytes."""
    start = 8 + 2 + 8 * 12 + 4
    return tiff(
        (256, LONG, 1, size[0]),
        (257, LONG, 1, size[1]),
        (258, SHORT, 1, 8),
        (259, SHORT, 1, compression),
        (262, SHORT, 1, 1),
        (273, LONG, 1, start),
        (278, LONG, 1, size[1]),
        (279, LONG, 1, length),
        next_ifd=next_ifd,
        data=b"\x80" * 64,
    )


def gif(frames: int = 10_000) -> bytes:
    """An animation of so many frames, of which the first one is the image."""
    out = io.BytesIO()
    Image.new("P", (4, 4), 1).save(out, "GIF")
    still = out.getvalue()
    body = still[:-1]
    frame = still[still.index(b",", 13) : -1]
    return body + frame * (frames - 1) + b";"


def png_bomb(side: int = 60_000) -> bytes:
    """A few kilobytes that declare thousands of millions of pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes(10**6), 9)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


DOCUMENTS = {
    "forms nested a billion times": lambda: nested_forms(),
    "a form that draws itself": lambda: form_of_itself(),
    "a content stream that inflates to 200 MB": lambda: flate_bomb(),
    "a page of a million inches": lambda: page(RED, box="0 0 72000000 72000000"),
    "a page of infinite size": lambda: page(RED, box="-1e38 -1e38 1e38 1e38"),
    "a page of negative size": lambda: page(RED, box="72 72 0 0"),
    "a page without an area": lambda: page(RED, box="5 5 5 5"),
    "a page box that is no box": lambda: page(RED, box="/A (b) null"),
    "100,000 declared pages": lambda: tree("3 0 R", 100_000),
    "two thousand million declared pages": lambda: tree("3 0 R", 2_000_000_000),
    "no pages": lambda: tree("", 0),
    "fewer pages than none": lambda: tree("3 0 R", -7),
    "a page tree that is its own child": lambda: tree("2 0 R " * 500, 500),
    "a page that is not there": lambda: tree("99 0 R", 1),
    "parents and outlines that go round": lambda: endless_objects(),
    "arrays 200,000 deep": lambda: deep_arrays(),
    "encrypted": lambda: encrypted(),
    "truncated": lambda: page(RED)[:200],
    "cut before the end": lambda: page(RED)[:-120],
    "garbage behind the header": lambda: b"%PDF-1.7\n" + bytes(range(256)) * 400,
    "only a header": lambda: b"%PDF-1.7\n",
    "a font that is missing": lambda: page(
        "BT /Nowhere 12 Tf 5 5 Td (Hello) Tj ET", resources="/Font << /Other 99 0 R >>"
    ),
    "a JBIG2 picture of garbage": lambda: picture_in_pdf(
        "/JBIG2Decode", b"\x97JB2" + b"\xff" * 500
    ),
    "a JPX picture of garbage": lambda: picture_in_pdf(
        "/JPXDecode", b"\xff\x4f\xff\x51" + b"\x00" * 99
    ),
    "a JPEG picture of garbage": lambda: picture_in_pdf(
        "/DCTDecode", b"\xff\xd8\xff" + b"\x41" * 99
    ),
    "a fax picture of 60,000 pixels a side": lambda: picture_in_pdf(
        "/CCITTFaxDecode", b"\x00" * 99, 60_000
    ),
    "200 filters, one after the other": lambda: picture_in_pdf(
        "[" + "/ASCIIHexDecode " * 200 + "]", b"41" * 99
    ),
    "a TIFF whose directories go round": lambda: grey_tiff(next_ifd=8),
    "a TIFF strip of 4 GB": lambda: grey_tiff(length=2**32 - 1),
    "a TIFF of less than it says": lambda: grey_tiff(size=(5000, 5000), length=64),
    "a TIFF of 4,000 million pixels a side": lambda: grey_tiff(size=(2**32 - 1, 2**32 - 1)),
    "a deflated TIFF of garbage": lambda: grey_tiff(compression=8),
    "a TIFF directory behind the end": lambda: grey_tiff(next_ifd=10**9),
    "a TIFF of nothing but a header": lambda: b"II*\0\x08\0\0\0",
    "a GIF of 10,000 frames": lambda: gif(),
    "a PNG of 3,600 million pixels": lambda: png_bomb(),
    "an empty file": lambda: b"",
    "zeros": lambda: bytes(100_000),
    "a web page": lambda: b"<!doctype html><html><body>404</body></html>",
    "a ZIP archive": lambda: b"PK\3\4" + bytes(500),
    "a PDF that is a PNG": lambda: b"\x89PNG\r\n\x1a\n%PDF-1.7\n",
}
