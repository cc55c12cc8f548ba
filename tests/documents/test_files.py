"""Many documents as one stream: folders, ranges of pages, failures as values; tiles; the store."""

import io
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from llavakit.documents import (
    Document,
    Failure,
    Page,
    PageRange,
    PageStore,
    Tiles,
    open_files,
    open_pages,
)
from llavakit.errors import DocumentError, ParameterError, SourceNotAllowedError
from llavakit.images import Picture
from llavakit.sources import SourcePolicy
from tests.documents.hostile import encrypted
from tests.documents.test_pages import COLOURS, THREE, colour, tiff

pytestmark = pytest.mark.timeout(60)


def read(*sources, **options):
    # In this process: other tests are about the renderer's own.
    return list(open_files(sources, page_seconds=None, **options))


def numbers(items):
    return [(Path(item.source).name, item.number, type(item).__name__) for item in items]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "b.pdf").write_bytes(THREE)
    (tmp_path / "a.TIF").write_bytes(tiff(*COLOURS[:2]))
    (tmp_path / "c.pdf").write_bytes(encrypted())
    (tmp_path / "sub" / "d.png").write_bytes(png(COLOURS[2]))
    (tmp_path / "notes.txt").write_text("not a page")
    (tmp_path / ".hidden.png").write_bytes(png(COLOURS[2]))
    return tmp_path


def png(colour):
    out = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(out, "PNG")
    return out.getvalue()


@pytest.mark.parametrize("kind", [str, Path, Path.read_bytes, Document])
def test_one_document_alone_needs_no_list(kind, folder):
    """Taken letter by letter, the "/" of a path would be the whole disk."""
    pages = list(open_files(kind(folder / "b.pdf"), page_seconds=None))
    assert [page.number for page in pages] == [1, 2, 3]


def test_a_folder_gives_the_pages_of_its_documents_and_failures_where_they_are(folder):
    items = read(folder)
    assert numbers(items) == [
        ("a.TIF", 1, "Page"),
        ("a.TIF", 2, "Page"),
        *(("b.pdf", number, "Page") for number in (1, 2, 3)),
        ("c.pdf", None, "Failure"),
        ("d.png", 1, "Page"),
    ]
    assert "encrypted" in str(items[5].error)
    assert [colour(item) for item in items[2:5]] == COLOURS


def test_pages_of_the_other_process_are_the_pages_of_this_one(folder):
    both = [list(open_files([folder], page_seconds=seconds, text=True)) for seconds in (30, None)]
    for one, other in zip(*both, strict=True):
        assert (one.source, one.number) == (other.source, other.number)
        if isinstance(one, Page):
            assert (one.digest, one.text) == (other.digest, other.text)
        else:
            assert str(one.error) == str(other.error)


def test_a_document_that_is_named_twice_is_read_once(folder):
    items = read(folder / "b.pdf", str(folder / "sub" / ".." / "b.pdf"), folder)
    assert sum(item.source.endswith("b.pdf") for item in items) == 3


@pytest.mark.parametrize(
    "text, last, expected",
    [("1-3,7", 9, [1, 2, 3, 7]), ("5-", 7, [5, 6, 7]), ("-2", 9, [1, 2]), ("3", 3, [3]),
     ("3,1-4", 9, [3, 1, 2, 4]), ("2-90", 3, [2, 3]), ("7", 3, [7]), ("7-9,1", 3, [7, 1]),
     (" 1 - 2 , 4", 9, [1, 2, 4]), ("1-999999999", 2, [1, 2])],
)  # fmt: skip
def test_ranges_of_pages(text, last, expected):
    assert list(PageRange.parse(text).numbers(last)) == expected


@pytest.mark.parametrize("text", ["", "0", "3-1", "a", "1;2", "1-2-3", "-", "1,,2", "1 2", "-0"])
def test_what_is_no_range_is_refused_at_once(text):
    with pytest.raises(ParameterError):
        open_files([THREE], pages=text)


def test_pages_can_be_chosen_for_all_files_and_for_each(folder):
    b, a = str(folder / "b.pdf"), folder / "a.TIF"
    chosen = read(b + "#pages=3,1", Document(a, "2"), folder / "sub" / "d.png", pages="1")
    assert [item.number for item in chosen] == [3, 1, 2, 1]
    assert [item.number for item in read(b + "#page=2")] == [2]
    assert [item.number for item in read(b, a, pages="2-")] == [2, 3, 2]


def test_a_page_that_is_not_there_is_a_failure_of_its_own(folder):
    first, second, third = read(str(folder / "b.pdf") + "#pages=1,7,2")
    assert isinstance(second, Failure) and "no page 7; it has 3" in str(second.error)
    assert (first.number, second.number, third.number) == (1, 7, 2)


def test_a_tiff_that_is_torn_gives_what_it_has():
    items = read(tiff(*COLOURS, size=(64, 64))[:-6000])
    assert [colour(item) for item in items[:-1]] == COLOURS[: len(items) - 1] and len(items) > 1
    assert isinstance(items[-1], Failure) and isinstance(items[-1].error, DocumentError)


def test_what_an_earlier_run_has_is_skipped_without_being_drawn(folder, monkeypatch):
    from llavakit.documents import _pdf

    drawn = []
    draw = _pdf.PdfReader.page
    monkeypatch.setattr(_pdf.PdfReader, "page", lambda self, n: (drawn.append(n), draw(self, n))[1])
    items = read(Document(str(folder / "b.pdf"), earlier=(None, "DocumentError")))
    assert [item.number for item in items] == [3] and drawn == [3, 4][: len(drawn)]


def test_folders_obey_the_policy(folder):
    for policy in (SourcePolicy(roots=(folder / "sub",)), SourcePolicy(allow_files=False)):
        (failure,) = read(folder, policy=policy)
        assert isinstance(failure.error, SourceNotAllowedError)
    assert len(read(folder / "sub", policy=SourcePolicy(roots=(folder,)))) == 1


@pytest.mark.parametrize("options", [{"dpi": 0}, {"page_seconds": 0}, {"max_pixels": 0}])
def test_numbers_that_make_no_sense_are_refused_at_once(options):
    with pytest.raises(ParameterError):
        open_files([THREE], **options)


def test_nothing_is_opened_before_the_first_page_is_asked_for(tmp_path):
    pages = open_files([tmp_path / "later.pdf"], page_seconds=None)
    (tmp_path / "later.pdf").write_bytes(THREE)
    assert next(pages).number == 1
    pages.close()


def lines_of_print(size, *, every=40, left=20):
    image = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(image)
    for top in range(10, size[1] - 20, every):
        for x in range(left, size[0] - left, 6):
            pen.rectangle((x, top, x + 3, top + 20), fill="black")
    return Picture(image)


def test_tiles_put_together_are_the_page():
    page = lines_of_print((300, 500))
    tiles = Tiles(2, 3).cut(page)
    assert len(tiles) == 6
    whole = Image.new("RGB", page.size)
    top = 0
    for row in range(3):
        left = 0
        for tile in tiles[2 * row : 2 * row + 2]:
            whole.paste(tile.rgb, (left, top))
            left += tile.size[0]
        assert left == 300
        top += tiles[2 * row].size[1]
    assert top == 500 and Picture(whole) == page


def test_cuts_go_between_lines_of_print():
    page = lines_of_print((200, 1000))
    for tile in Tiles(1, 4).cut(page):
        for y in (0, tile.size[1] - 1):
            row = tile.rgb.crop((0, y, tile.size[0], y + 1)).convert("L")
            assert row.getextrema() == (255, 255)


def test_tiles_can_be_chosen_by_the_page():
    assert Tiles.parse("auto").grid((600, 700)) == (1, 1)
    assert Tiles.parse("auto").grid((1224, 1584)) == (2, 2)
    assert Tiles.parse("auto").grid((400, 4000)) == (1, 6)
    columns, rows = Tiles.parse("auto").grid((32_000, 32_000))
    assert 16 <= columns * rows <= 64
    assert Tiles.parse("2x3") == Tiles(2, 3) and str(Tiles(2, 3)) == "2x3"
    for text in ("0x3", "2", "9x9", "2X3", "axb", "-1x2"):
        with pytest.raises(ParameterError):
            Tiles.parse(text)
    assert len(Tiles(8, 8).cut(Picture(Image.new("RGB", (3, 2))))) == 6


def test_the_store_gives_back_the_same_pixels(tmp_path):
    store = PageStore(tmp_path / "pages")
    page = next(open_pages(THREE))
    assert page.digest not in store and store.get(page.digest) is None
    path = store.put(page.picture)
    assert store.put(page.picture) == path and list(store) == [page.digest]
    assert store.get(page.digest) == page.picture and page.digest in store
    assert [p.name for p in tmp_path.rglob("*.*")] == [f"{page.digest}.png"]


def test_what_is_damaged_in_the_store_is_not_there(tmp_path):
    store = PageStore(tmp_path)
    picture, other = (Picture(Image.new("RGB", (8, 8), colour)) for colour in COLOURS[:2])
    for content in (b"", store.put(picture).read_bytes()[:40], store.put(other).read_bytes()):
        store.put(picture).write_bytes(content)
        assert store.get(picture.digest) is None and picture.digest not in store
        assert store.get(store.put(picture).stem) == picture


@pytest.mark.parametrize("digest", ["", "../../etc/passwd", "A" * 64, "a" * 63])
def test_only_digests_name_files_of_the_store(tmp_path, digest):
    with pytest.raises(ParameterError):
        PageStore(tmp_path).get(digest)


def test_writers_of_one_store_do_not_disturb_each_other(tmp_path):
    pictures = [Picture(Image.new("RGB", (40, 40), (n, 0, 0))) for n in range(20)]
    wrong = []

    def work() -> None:
        store = PageStore(tmp_path)
        for picture in pictures:
            store.put(picture)
            if store.get(picture.digest) != picture:
                wrong.append(picture)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert wrong == [] and len(list(PageStore(tmp_path))) == 20
    assert not list(tmp_path.rglob("*.tmp"))


def test_processes_share_a_store(tmp_path):
    code = (
        "import sys; from PIL import Image; from llavakit.images import Picture\n"
        "from llavakit.documents import PageStore\n"
        "store = PageStore(sys.argv[1])\n"
        "for n in range(60):\n"
        "    picture = Picture(Image.new('RGB', (64, 64), (n, 0, 0)))\n"
        "    store.put(picture)\n"
        "    assert store.get(picture.digest) == picture\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    both = [subprocess.Popen(command) for _ in range(2)]
    assert [process.wait(50) for process in both] == [0, 0]
    store = PageStore(tmp_path)
    assert len(list(store)) == 60 and all(store.get(digest) for digest in store)
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 60
