"""What of a folder is read, and what is reported as left out."""

import io
import logging

import pytest
from PIL import Image

from llavakit.documents import Failure, Page, open_files
from llavakit.documents.suffixes import LeftOut


def image(kind, **options):
    out = io.BytesIO()
    Image.new("RGB", (16, 12), (200, 30, 30)).save(out, kind, **options)
    return out.getvalue()


KINDS = {
    "a.jpg": image("JPEG"), "b.jfif": image("JPEG"), "c.jpe": image("JPEG"),
    "d.jp2": image("JPEG2000"), "e.j2k": image("JPEG2000", no_jp2=True), "f.dib": image("BMP"),
    "g.JIF": image("JPEG"), "h.apng": image("PNG"),
}  # fmt: skip


def test_every_spelling_of_a_suffix_is_read_from_a_folder_as_it_is_alone(tmp_path):
    for name, data in KINDS.items():
        (tmp_path / name).write_bytes(data)
    items = list(open_files(tmp_path))
    assert [type(item) for item in items] == [Page] * len(KINDS)
    for item in items:
        (alone,) = open_files(item.source)
        assert alone.digest == item.digest and item.size == (16, 12)


def heif(*colours):
    pillow_heif = pytest.importorskip("pillow_heif")
    file = pillow_heif.HeifFile()
    for colour in colours:
        file.add_from_pillow(Image.new("RGB", (64, 48), colour))
    out = io.BytesIO()
    file.save(out, quality=90)
    return out.getvalue()


def test_a_heic_has_a_page_for_each_of_its_images(tmp_path):
    (tmp_path / "burst.HEIC").write_bytes(heif((250, 0, 0), (0, 0, 250)))
    items = list(open_files(tmp_path))
    assert [item.number for item in items] == [1, 2]
    assert [item.size for item in items] == [(64, 48)] * 2
    assert items[0].picture.rgb.getpixel((9, 9))[0] > 200
    assert items[1].picture.rgb.getpixel((9, 9))[2] > 200


def test_without_its_package_a_heic_is_a_failure_that_names_the_extra(tmp_path, monkeypatch):
    (tmp_path / "a.heic").write_bytes(heif((250, 0, 0)))
    (tmp_path / "b.jpg").write_bytes(KINDS["a.jpg"])
    monkeypatch.setitem(__import__("sys").modules, "pillow_heif", None)
    failure, page = open_files(tmp_path)
    assert isinstance(failure, Failure) and isinstance(page, Page)
    assert 'pip install "llavakit[heif]"' in str(failure.error)


def test_a_damaged_heic_is_a_failure(tmp_path):
    (tmp_path / "a.heic").write_bytes(heif((250, 0, 0))[:200])
    (failure,) = open_files(tmp_path)
    assert isinstance(failure, Failure) and "HEIC" in str(failure.error)


def test_what_is_left_out_is_counted_by_suffix(tmp_path, caplog):
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.jpg").write_bytes(KINDS["a.jpg"])
    for name in ("b.docx", "sub/c.DOCX", "d.txt", "README", ".hidden"):
        (tmp_path / name).write_text("words")
    with caplog.at_level(logging.WARNING, "llavakit"):
        found = []
        for _ in range(2):  # each source once, however often it is opened
            assert len(list(open_files(tmp_path, left_out=found))) == 1
    message, again = caplog.messages
    assert found == [LeftOut(str(tmp_path), {".docx": 2, ".txt": 1, "": 1})]
    assert found[0].files == 4 and str(found[0]) == message == again
    assert "4 files" in message and "2 .docx" in message and "1 .txt" in message
    assert "1 without a suffix" in message and str(tmp_path) in message


def test_nothing_left_out_is_nothing_said(tmp_path, caplog):
    (tmp_path / "a.jpg").write_bytes(KINDS["a.jpg"])
    list(open_files(tmp_path))
    assert not caplog.messages


def test_many_suffixes_make_no_endless_sentence():
    sentence = str(LeftOut("x", {f".{at}": 1 for at in range(500)}))
    assert len(sentence) < 400 and "500 files" in sentence and "488 of other suffixes" in sentence
