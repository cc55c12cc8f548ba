"""Pages: PDFs, TIFFs and images, read lazily; hostile documents end in our errors."""

import io
import itertools
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from llavakit.documents import Page, _pdf, count_pages, open_pages
from llavakit.errors import (
    DocumentError,
    LlavaKitError,
    MissingDependencyError,
    ParameterError,
    SourceNotAllowedError,
    SourceNotFoundError,
)
from llavakit.images import open_picture
from llavakit.sources import SourcePolicy

pytestmark = pytest.mark.timeout(30)

COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]


def pdf(
    *contents: str,
    box: str = "0 0 72 144",
    count: int | None = None,
    kids: str = "",
    more: str = "",
) -> bytes:
    """A PDF with one page for each content stream."""
    numbers = [4 + 2 * i for i in range(len(contents))]
    kids = kids or " ".join(f"{n} 0 R" for n in numbers)
    objects = [
        f"<< /Type /Catalog /Pages 2 0 R {more} >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(contents) if count is None else count} "
        f"/MediaBox [{box}] /Resources << /Font << /F 3 0 R >> >> >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for number, content in zip(numbers, contents, strict=True):
        objects.append(f"<< /Type /Page /Parent 2 0 R /Contents {number + 1} 0 R >>")
        objects.append(f"<< /Length {len(content)} >>\nstream\n{content}\nendstream")
    body, offsets = "%PDF-1.7\n", []
    for number, text in enumerate(objects, 1):
        offsets.append(len(body))
        body += f"{number} 0 obj\n{text}\nendobj\n"
    table = "".join(f"{offset:010} 00000 n \n" for offset in offsets)
    size = len(objects) + 1
    body += f"xref\n0 {size}\n0000000000 65535 f \n{table}trailer\n<< /Size {size} /Root 1 0 R "
    return (body + f"{more} >>\nstartxref\n{body.index('xref')}\n%%EOF\n").encode("latin-1")


def filled(red: float, green: float, blue: float) -> str:
    return f"{red} {green} {blue} rg 0 0 1000 1000 re f"


THREE = pdf(filled(1, 0, 0), filled(0, 1, 0), filled(0, 0, 1))


def tiff(*colours: tuple[int, int, int], size: tuple[int, int] = (8, 4), **options) -> bytes:
    out = io.BytesIO()
    first, *rest = (Image.new("RGB", size, colour) for colour in colours)
    first.save(out, "TIFF", save_all=True, append_images=rest, **options)
    return out.getvalue()


def colour(page: Page) -> tuple[int, ...]:
    w, h = page.size
    return page.picture.rgb.getpixel((w // 2, h // 2))


@pytest.fixture(params=["path", "string", "uri", "bytes", "file"])
def three(request, tmp_path: Path):
    path = tmp_path / "three.pdf"
    path.write_bytes(THREE)
    sources = {"path": path, "string": str(path), "uri": path.as_uri(), "bytes": THREE}
    return sources.get(request.param) or io.BytesIO(THREE)


def test_a_pdf_from_any_source_gives_its_pages_in_order(three):
    pages = list(open_pages(three))
    assert [page.number for page in pages] == [1, 2, 3]
    assert [colour(page) for page in pages] == COLOURS
    assert {page.size for page in pages} == {(144, 288)} and count_pages(three) == 3
    assert all(page.text is None and page.digest == page.picture.digest for page in pages)


def test_pages_carry_the_name_of_their_source(tmp_path):
    (tmp_path / "a.pdf").write_bytes(THREE)
    for source in (tmp_path / "a.pdf", str(tmp_path / "a.pdf"), (tmp_path / "a.pdf").open("rb")):
        assert next(open_pages(source)).source == str(tmp_path / "a.pdf")
        getattr(source, "close", str)()
    assert next(open_pages(THREE)).source == "the document"


def test_dpi_sets_the_size_and_the_pixel_cap_wins():
    assert next(open_pages(THREE, dpi=72)).size == (72, 144)
    width, height = next(open_pages(THREE, dpi=7200, max_pixels=20_000)).size
    assert 19_000 < width * height <= 20_000 and abs(height / width - 2) < 0.05
    assert next(open_pages(THREE, policy=SourcePolicy(max_side=50))).size == (25, 50)


@pytest.mark.parametrize(
    "box",
    ["0 0 1e9 1e9", "0 0 1e38 1e38", "0 0 1e9 1", "0 0 0.001 0.001", "0 0 14400 0.1", "5 5 5 5",
     "0 0 -100 -100", "0 0 nan inf", "x", "", "1e38 1e38 -1e38 -1e38", "0 0 1e-30 1e30"],
)  # fmt: skip
def test_absurd_page_boxes_end_in_a_small_page_or_our_error(box):
    try:
        page = next(open_pages(pdf(filled(1, 0, 0), box=box), max_pixels=100_000))
    except DocumentError:
        return
    assert page.size[0] * page.size[1] <= 100_000 and max(page.size) <= 32_768


def test_chosen_pages_come_in_the_order_asked_for():
    assert [p.number for p in open_pages(THREE, pages=[3, 1, 3])] == [3, 1, 3]
    assert [p.number for p in open_pages(THREE, pages=range(2, 4))] == [2, 3]
    assert list(open_pages(THREE, pages=[])) == []
    with pytest.raises(DocumentError, match=r"no page 4; its pages are 1 to 3"):
        list(open_pages(THREE, pages=[4]))
    with pytest.raises(DocumentError, match="no page 2"):
        list(open_pages(tiff(COLOURS[0]), pages=[2]))
    with pytest.raises(DocumentError, match="no page 2"):
        list(open_pages(Image.new("RGB", (1, 1)), pages=[2]))


@pytest.mark.parametrize(
    "options",
    [{"pages": [0]}, {"pages": [-1]}, {"pages": range(0, 3)}, {"pages": ["1"]}, {"pages": [True]},
     {"dpi": 0}, {"dpi": float("nan")}, {"dpi": float("inf")}, {"max_pixels": 0}],
)  # fmt: skip
def test_numbers_that_make_no_sense_are_refused_at_once(options):
    with pytest.raises(ParameterError):
        open_pages(THREE, **options)


def test_nothing_is_opened_before_the_first_page_is_asked_for(tmp_path):
    pages = open_pages(tmp_path / "later.pdf")
    with pytest.raises(SourceNotFoundError):
        next(pages)
    pages = open_pages(tmp_path / "later.pdf")
    (tmp_path / "later.pdf").write_bytes(THREE)
    assert next(pages).number == 1
    pages.close()


def test_the_text_layer_is_read_when_asked_for():
    source = pdf("BT /F 12 Tf 5 100 Td (Hello) Tj 0 -20 Td (page) Tj ET", filled(1, 1, 1))
    first, second = open_pages(source, text=True)
    assert first.text is not None and first.text.split() == ["Hello", "page"]
    assert "\r" not in first.text and second.text == ""


def test_a_multi_frame_tiff_gives_its_frames():
    data = tiff(*COLOURS, compression="tiff_lzw")
    pages = list(open_pages(data))
    assert [colour(page) for page in pages] == COLOURS and count_pages(data) == 3
    assert pages[0].picture == open_picture(data)
    assert [colour(p) for p in open_pages(data, pages=[3, 1])] == [COLOURS[2], COLOURS[0]]


def test_a_picture_is_a_document_of_one_page():
    image = Image.new("RGB", (40, 20), COLOURS[1])
    for source in (image, open_picture(image), open_picture(image).data_uri()):
        (page,) = open_pages(source)
        assert (page.number, page.size, page.digest) == (1, (40, 20), open_picture(image).digest)
        assert count_pages(source) == 1
    (small,) = open_pages(image, max_pixels=200)
    assert small.size == (20, 10) and colour(small) == COLOURS[1]


def encrypted() -> bytes:
    key = "<" + "41" * 32 + ">"
    more = (
        f"/Encrypt << /Filter /Standard /V 2 /R 3 /Length 128 /P -4 /O {key} /U {key} >> "
        f"/ID [<41414141> <41414141>]"
    )
    return pdf(filled(1, 0, 0), more=more)


BAD = {
    "encrypted": (encrypted(), "encrypted"),
    "truncated": (THREE[:60], "damaged"),
    "header-only": (b"%PDF-1.7\n", "damaged"),
    "noise": (b"%PDF-1.7\n" + bytes(range(256)) * 50, "damaged"),
    "no-pages": (pdf(), "no pages|damaged"),
    "missing-page": (pdf(kids="99 0 R", count=1), "damaged"),
    "damaged-tiff": (tiff(COLOURS[0])[:40], "TIFF is truncated"),
    "nothing": (b"", "empty"),
    "web-page": (b"<html>no</html>", "web page"),
    "office-document": (b"PK\3\4" + bytes(50), "Office"),
    "words": (b"Dear Sir", "not an image"),
    "object": ({"a": 1}, "dict"),
}


@pytest.mark.parametrize("source, words", BAD.values(), ids=BAD)
def test_bad_documents_are_document_errors(source, words):
    started = time.monotonic()
    with pytest.raises(DocumentError, match=words) as caught:
        list(open_pages(source))
    assert time.monotonic() - started < 5 and len(str(caught.value)) < 300


@pytest.mark.parametrize("count", [100_000, 2_000_000_000, -5])
def test_a_hundred_thousand_declared_pages_cost_nothing(count):
    started = time.monotonic()
    try:
        for page in itertools.islice(open_pages(pdf(filled(1, 0, 0), count=count)), 3):
            assert colour(page) == COLOURS[0]
    except DocumentError:
        pass
    assert time.monotonic() - started < 5


def test_page_trees_that_bite_their_tail_end():
    for kids in ("2 0 R", "2 0 R " * 500, "1 0 R", "4 0 R 4 0 R 4 0 R"):
        with pytest.raises(DocumentError):
            for page in itertools.islice(open_pages(pdf(filled(1, 0, 0), kids=kids, count=50)), 60):
                assert page.size == (144, 288)


def test_the_caps_of_the_policy_hold(tmp_path):
    (tmp_path / "a.pdf").write_bytes(THREE)
    with pytest.raises(DocumentError, match="max_bytes"):
        next(open_pages(tmp_path / "a.pdf", policy=SourcePolicy(max_bytes=100)))
    with pytest.raises(DocumentError, match=r"Page 1 .*max_pixels"):
        next(open_pages(tiff(COLOURS[0]), policy=SourcePolicy(max_pixels=31)))
    with pytest.raises(SourceNotAllowedError):
        next(open_pages(tmp_path / "a.pdf", policy=SourcePolicy(roots=())))


def test_a_tiff_that_fails_half_way_gives_the_pages_before():
    data = bytearray(tiff(*COLOURS, size=(64, 64)))
    pages = open_pages(bytes(data[:-6000]))
    seen = []
    with pytest.raises(DocumentError):
        for page in pages:
            seen.append(colour(page))
    assert seen and seen == COLOURS[: len(seen)]


def test_the_lock_is_not_held_between_pages():
    one, other = open_pages(THREE), open_pages(THREE)
    assert [next(one).number, next(other).number, next(one).number] == [1, 1, 2]
    found = []
    thread = threading.Thread(target=lambda: found.append(next(open_pages(THREE)).number))
    thread.start()
    thread.join(10)
    assert found == [1]
    one.close()
    other.close()


def test_threads_read_pdfs_side_by_side():
    found: list[list[tuple[int, ...]]] = []

    def work() -> None:
        for _ in range(3):
            found.append([colour(page) for page in open_pages(THREE, dpi=36)])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert found == [COLOURS] * 12


def test_an_abandoned_reading_frees_the_document(monkeypatch):
    closed = []
    close = _pdf.PdfReader.close
    monkeypatch.setattr(_pdf.PdfReader, "close", lambda self: (closed.append(1), close(self))[1])
    pages = open_pages(THREE)
    next(pages)
    del pages
    assert closed == [1]


def test_without_pypdfium2_the_extra_is_named_and_pictures_still_open(monkeypatch):
    monkeypatch.setitem(sys.modules, "pypdfium2", None)
    with pytest.raises(MissingDependencyError, match=r'pip install "llavakit\[documents\]"'):
        next(open_pages(THREE))
    assert len(list(open_pages(tiff(*COLOURS)))) == 3


@settings(max_examples=60, deadline=5000, database=None)
@given(st.data())
def test_cut_and_flipped_pdfs_open_or_raise_our_errors(data):
    damaged = bytearray(THREE[: data.draw(st.integers(20, len(THREE)))])
    for at in data.draw(st.lists(st.integers(0, len(damaged) - 1), max_size=6)):
        damaged[at] = data.draw(st.integers(0, 255))
    try:
        for page in itertools.islice(open_pages(bytes(damaged), dpi=36, max_pixels=10_000), 4):
            assert page.size[0] * page.size[1] <= 10_000
    except LlavaKitError:
        pass


def test_every_frame_is_measured_before_it_is_decoded():
    made = io.BytesIO()
    large = Image.new("RGB", (80, 40))
    Image.new("RGB", (8, 4)).save(made, "TIFF", save_all=True, append_images=[large])
    pages = open_pages(made.getvalue(), policy=SourcePolicy(max_pixels=100))
    assert next(pages).size == (8, 4)
    with pytest.raises(DocumentError, match=r"Page 2 .*max_pixels"):
        next(pages)
