"""Pages in ZIP and CBZ archives, and documents with passwords."""

import io
import logging
import struct
import zipfile
import zlib

import pytest
from PIL import Image as PILImage

from llavakit.documents import (
    Failure,
    Page,
    PageReference,
    _archive,
    count_pages,
    message_pages,
    open_files,
    open_pages,
    reopen,
)
from llavakit.errors import ParameterError, PasswordError
from llavakit.sources import SourcePolicy
from llavakit.values import Image
from tests.documents.drawn import print_lines, sheet
from tests.documents.test_pages import COLOURS, THREE, colour, tiff

pytestmark = pytest.mark.timeout(60)


def png(colour, size=(8, 8)):
    out = io.BytesIO()
    PILImage.new("RGB", size, colour).save(out, "PNG")
    return out.getvalue()


def archive(members, compression=zipfile.ZIP_DEFLATED):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return out.getvalue()


def read(data, **options):
    items = list(open_files([data], page_seconds=None, **options))
    lost = sum(item.lost for item in items if isinstance(item, Failure))
    password = options.get("password")
    policy = options.get("policy", SourcePolicy())
    pages = sum(isinstance(item, Page) for item in items)
    assert pages + lost == count_pages(data, password=password, policy=policy)
    return items


def test_images_are_pages_in_the_order_in_which_people_count():
    data = archive({"b/10.png": png((0, 0, 1)), "b/2.png": png((0, 0, 2)), "a.PNG": png((0, 0, 3))})
    items = read(data)
    assert [item.number for item in items] == [1, 2, 3]
    assert [item.picture.rgb.getpixel((1, 1))[2] for item in items] == [3, 2, 1]


def test_documents_in_an_archive_have_all_their_pages_and_text():
    data = archive({"1.pdf": THREE, "2.tif": tiff(*COLOURS), "3.pdf": sheet(print_lines(["word"]))})
    items = read(data, text=True)
    assert [colour(item) for item in items[:6]] == COLOURS * 2 and items[6].text == "word"
    (fifth,) = open_pages(data, pages=[5])
    assert colour(fifth) == COLOURS[1]


def test_it_is_the_same_in_the_other_process():
    data = archive({"1.pdf": THREE, "2.png": png((9, 9, 9)), "3.pdf": THREE})
    one, other = (list(open_files([data], page_seconds=s)) for s in (30, None))
    assert [page.digest for page in one] == [page.digest for page in other] and len(one) == 7


def test_a_page_of_an_archive_is_found_again(tmp_path):
    (tmp_path / "book.cbz").write_bytes(archive({"1.png": png((1, 2, 3)), "2.pdf": THREE}))
    pages = list(open_files(tmp_path, page_seconds=None))
    assert [page.source for page in pages] == [str(tmp_path / "book.cbz")] * 4
    again = reopen([PageReference.of(page) for page in pages], page_seconds=None)
    assert [page.digest for page in again] == [page.digest for page in pages]


def test_what_is_damaged_or_no_page_costs_itself_alone(caplog):
    members = {
        "1.png": png((1, 1, 1)), "2.png": b"rubbish", "3.pdf": b"%PDF-1.7 nothing",
        "4.zip": archive({"a.png": png((1, 1, 1))}), "5.png": png((2, 2, 2)), "notes.txt": b"words",
        "__MACOSX/1.png": b"x", ".hidden.png": b"x", "../../../etc/6.png": png((3, 3, 3)),
    }  # fmt: skip
    with caplog.at_level(logging.WARNING, "llavakit"):
        items = read(archive(members))
    kinds = [type(item) for item in items]
    assert kinds == [Page, Failure, Failure, Failure, Page, Page]
    assert "2.png" in str(items[1].error) and "ZIP" in str(items[3].error)
    assert "1 .txt" in caplog.text


def test_a_bomb_is_read_no_further_than_the_cap():
    policy = SourcePolicy(max_bytes=200_000)
    bomb = archive({"1.png": bytes(50_000_000), "2.png": png((1, 1, 1))})
    first, second = read(bomb, policy=policy)
    assert "200,000" in str(first.error) and isinstance(second, Page)


def test_a_size_that_is_a_lie_is_not_believed():
    data = bytearray(archive({"1.png": bytes(9_000_000)}))
    where = data.index(b"PK\1\2")
    struct.pack_into("<I", data, where + 24, 100)
    (failure,) = read(bytes(data), policy=SourcePolicy(max_bytes=100_000))
    assert isinstance(failure, Failure)


def test_what_all_members_may_give_ends_with_one_failure_for_the_rest(monkeypatch):
    monkeypatch.setattr(_archive, "_TIMES", 30)
    data = archive({f"{at:03}.png": png((1, 1, 1)) + bytes(3000) for at in range(40)})
    items = read(data, policy=SourcePolicy(max_bytes=4000 + len(data)))
    assert all(isinstance(item, Page) for item in items)
    monkeypatch.setattr(_archive, "_TIMES", 2)
    *pages, over, rest = read(data, policy=SourcePolicy(max_bytes=4000 + len(data)))
    assert all(isinstance(item, Page) for item in pages) and isinstance(over, Failure)
    assert rest.number is None and str(rest.pages) == f"{len(pages) + 2}-40"


@pytest.mark.parametrize(
    "data, words",
    [
        (archive({"[Content_Types].xml": b"<x/>", "word/document.xml": b"<x/>"}), "Office"),
        (archive({"mimetype": b"application/epub+zip"}), "e-book"),
        (archive({"notes.txt": b"x"}), "no images"),
        (archive({"a.png": png((1, 1, 1))})[:-10], "damaged"),
    ],
)
def test_archives_without_pages_say_so(data, words):
    (failure,) = open_files([data])
    assert words in str(failure.error)


def locked_zip(data: bytes, name: str, password: bytes) -> bytes:
    """An archive in the old encryption of PKWARE (APPNOTE 6.1), which zipfile only reads."""
    keys = [0x12345678, 0x23456789, 0x34567890]

    def crc(value, byte):
        return zlib.crc32(bytes([byte]), value ^ 0xFFFFFFFF) ^ 0xFFFFFFFF

    def update(byte):
        keys[0] = crc(keys[0], byte)
        keys[1] = ((keys[1] + (keys[0] & 255)) * 134775813 + 1) & 0xFFFFFFFF
        keys[2] = crc(keys[2], keys[1] >> 24)

    for byte in password:
        update(byte)
    check = zlib.crc32(data)
    out = bytearray()
    for byte in bytes(11) + bytes([check >> 24]) + data:
        temp = keys[2] | 2
        out.append(byte ^ (((temp * (temp ^ 1)) >> 8) & 255))
        update(byte)
    plain = bytearray(archive({name: data}, zipfile.ZIP_STORED))
    start = 30 + len(name)
    plain[start : start + len(data)] = out
    grown = bytes(plain)
    local, central = grown.index(b"PK\3\4"), grown.index(b"PK\1\2")
    fixed = bytearray(grown)
    for at, size in ((local + 6, local + 18), (central + 8, central + 20)):
        struct.pack_into("<H", fixed, at, 1)
        struct.pack_into("<I", fixed, size, len(out))
    struct.pack_into("<I", fixed, fixed.index(b"PK\5\6") + 16, central)
    return bytes(fixed)


def locked_pdf(password="secret", owner="owner", colour=(1, 0, 0)):
    pikepdf = pytest.importorskip("pikepdf")
    out = io.BytesIO()
    with pikepdf.open(io.BytesIO(sheet("1 0 0 rg 0 0 999 999 re f"))) as pdf:
        pdf.save(out, encryption=pikepdf.Encryption(user=password, owner=owner))
    return out.getvalue()


LOCKED = {"pdf": locked_pdf(), "zip": locked_zip(png((255, 0, 0)), "a.png", b"secret")}


@pytest.mark.parametrize("kind", LOCKED)
@pytest.mark.parametrize("page_seconds", [None, 30])
def test_a_document_opens_with_its_password_in_whatever_way_it_is_given(
    kind, page_seconds, tmp_path
):
    path = tmp_path / f"locked.{kind}"
    path.write_bytes(LOCKED[kind])
    asked = []

    def ask(name):
        asked.append(name)
        return ["wrong", "secret"][len(asked) - 1]

    for password in ("secret", {"locked." + kind: "secret"}, {str(path): "secret"}, ask):
        (page,) = open_files(path, password=password, page_seconds=page_seconds)
        assert page.picture.rgb.getpixel((4, 4)) == (255, 0, 0)
    assert asked == [str(path)] * 2


@pytest.mark.parametrize("kind", LOCKED)
def test_without_the_right_password_it_is_a_failure_that_says_which(kind, tmp_path):
    path = tmp_path / f"locked.{kind}"
    path.write_bytes(LOCKED[kind])
    never = []
    for password, words in (
        (None, "give its password"),
        ("wrong", "does not open it"),
        ({"other.pdf": "secret"}, "give its password"),
        (lambda name: never.append(name), "give its password"),
    ):
        (failure,) = open_files(path, password=password, page_seconds=None)
        assert isinstance(failure.error, PasswordError) and words in str(failure.error)
    assert len(never) == 1
    with pytest.raises(ParameterError, match="text"):
        list(open_files(path, password=lambda name: 7, page_seconds=None))


def test_nobody_is_asked_about_what_is_not_encrypted():
    list(open_files([THREE], password=lambda name: pytest.fail("asked"), page_seconds=None))


def test_a_page_of_a_locked_document_is_found_again_with_its_password(tmp_path):
    path = tmp_path / "a.pdf"
    path.write_bytes(LOCKED["pdf"])
    (page,) = open_files(path, password="secret", page_seconds=None)
    reference = PageReference.of(page)
    assert "secret" not in str(reference.metadata())
    (again,) = reopen(reference, password="secret", page_seconds=None)
    assert again.digest == page.digest
    with pytest.raises(PasswordError):
        reopen(reference, page_seconds=None)


def test_a_document_in_a_message_opens_with_its_password(tmp_path):
    path = tmp_path / "locked.pdf"
    path.write_bytes(locked_pdf())
    asked = []

    def ask(name):
        asked.append(name)
        return "secret"

    for password in ("secret", {"locked.pdf": "secret"}, {str(path): "secret"}, ask):
        (page,) = message_pages(Image(path), 3, password=password)
        assert page.number == 1
    assert asked == [str(path)]
    for password in (None, "wrong", {"other.pdf": "secret"}, lambda name: None):
        with pytest.raises(PasswordError, match="encrypted"):
            message_pages(Image(path), 3, password=password)
