"""The parser that loaders of PDFs take as ``images_parser``, and blobs of all kinds."""

import io
from pathlib import Path

import numpy as np
import pypdfium2
import pytest
from langchain_core.document_loaders import BaseBlobParser
from langchain_core.documents.base import Blob
from PIL import Image as PILImage

from llavakit.errors import (
    DocumentError,
    ImageDecodeError,
    ImageError,
    ImageTooLargeError,
    ParameterError,
    PasswordError,
    SourceNotAllowedError,
    UnsupportedImageError,
)
from llavakit.langchain import ChatLLaVA, PageImageParser, page_messages
from llavakit.sources import SourcePolicy
from llavakit.testing import FakeBackend
from llavakit.values import Image
from tests.documents.test_archives import locked_pdf
from tests.documents.test_pages import THREE, tiff

pytestmark = pytest.mark.timeout(120)

DATA = Path("examples/data")
PAGES = DATA / "pages.pdf"


def npy(array, **options):
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return Blob.from_data(buffer.getvalue(), mime_type="application/x-npy")


def header(text, body=b"\0" * 8):
    """An array as bytes, with a header of one's own."""
    raw = text.encode() + b"\n"
    return Blob.from_data(b"\x93NUMPY\x01\x00" + len(raw).to_bytes(2, "little") + raw + body)


def texts_of_pictures(path, images_parser):
    """What LangChain's loaders of PDFs do with the images of a page: all that they call."""
    document = pypdfium2.PdfDocument(path)
    try:
        for page in document:
            for drawn in page.get_objects(filter=(3,)):
                saved = io.BytesIO()
                np.save(saved, drawn.get_bitmap().to_numpy())
                blob = Blob.from_data(saved.getvalue(), mime_type="application/x-npy")
                yield next(images_parser.lazy_parse(blob)).page_content
    finally:
        document.close()


def test_pictures_inside_a_pdf_become_text_as_existing_loaders_ask_for_it(demo_backend):
    texts = list(texts_of_pictures(PAGES, PageImageParser(ChatLLaVA(model="demo"))))
    assert [text.split("\n")[0] for text in texts] == ["REPORT", "INVOICE", "RECEIPT", "CONTRACT"]
    assert "1609" in texts[1]


GREY = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
ARRAYS = {
    "grey": GREY,
    "grey of three dimensions": GREY[..., None],
    "grey and opaque": np.dstack([GREY, np.full_like(GREY, 255)]),
    "rgb": np.dstack([GREY] * 3),
    "rgba": np.dstack([GREY] * 3 + [np.full_like(GREY, 255)]),
    "16 bit": GREY.astype(np.uint16) * 257,
    "column by column": np.asfortranarray(GREY),
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_arrays_of_every_kind_show_the_same_picture_and_give_one_document(kind):
    fake = FakeBackend(["seen"])
    (document,) = PageImageParser(fake).parse(npy(ARRAYS[kind]))
    assert document.page_content == "seen"
    (image,) = fake.requests[0].messages[0].images
    assert image == Image(PILImage.fromarray(GREY))


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP"])
def test_an_encoded_picture_gives_one_document_whatever_type_is_declared(format):
    buffer = io.BytesIO()
    PILImage.fromarray(GREY).convert("RGB").save(buffer, format)
    blob = Blob.from_data(buffer.getvalue(), mime_type="application/octet-stream")
    (document,) = PageImageParser(FakeBackend(["seen"])).parse(blob)
    assert document.page_content == "seen"


BAD = {
    "objects": lambda: npy(np.array([{}]), allow_pickle=True),
    "more than there is": lambda: header(
        "{'descr': '|u1', 'fortran_order': False, 'shape': (99999, 99999), }"
    ),
    "a shape below zero": lambda: header(
        "{'descr': '|u1', 'fortran_order': False, 'shape': (-1, -8), }"
    ),
    "code for a header": lambda: header("__import__('os').getcwd()"),
    "no header": lambda: Blob.from_data(b"\x93NUMPY\x01\x00"),
    "another version": lambda: Blob.from_data(b"\x93NUMPY\x09\x00\x00\x00"),
    "one dimension": lambda: npy(np.zeros(9, np.uint8)),
    "four dimensions": lambda: npy(np.zeros((1, 3, 3, 3), np.uint8)),
    "no pixels": lambda: npy(np.zeros((0, 4), np.uint8)),
    "complex numbers": lambda: npy(np.zeros((3, 4), complex)),
    "an archive": lambda: Blob.from_data(b"PK\x03\x04 and so on"),
    "nothing": lambda: Blob.from_data(b""),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_blobs_end_in_our_errors_and_cost_the_model_nothing(kind):
    fake = FakeBackend()
    with pytest.raises((ImageError, DocumentError)):
        next(PageImageParser(fake).lazy_parse(BAD[kind]()))
    assert not fake.requests


def test_a_tiny_blob_that_declares_terabytes_is_refused_by_its_header():
    with pytest.raises(ImageDecodeError, match="less than its header says"):
        next(PageImageParser(FakeBackend()).lazy_parse(BAD["more than there is"]()))


def test_the_caps_hold_for_arrays():
    parser = PageImageParser(FakeBackend(), policy=SourcePolicy(max_pixels=100))
    with pytest.raises(ImageTooLargeError):
        next(parser.lazy_parse(npy(np.zeros((11, 10), np.uint8))))
    assert next(parser.lazy_parse(npy(np.zeros((10, 10), np.uint8)))).page_content == "ok"


def test_text_is_no_picture():
    with pytest.raises(UnsupportedImageError, match="holds text"):
        next(PageImageParser(FakeBackend()).lazy_parse(Blob.from_data("words")))


@pytest.mark.parametrize("kind", BAD)
def test_a_loader_that_counts_on_one_document_gets_it_when_errors_are_skipped(kind, caplog):
    parser = PageImageParser(FakeBackend(), on_error="skip")
    (document,) = parser.parse(BAD[kind]())
    assert document.page_content == ""
    assert type(parser.skipped[0].error).__name__ in document.metadata["error"]
    assert "Left out" in caplog.text


def test_a_pdf_gives_one_document_a_page(tmp_path):
    path = tmp_path / "three.pdf"
    path.write_bytes(THREE)
    parser = PageImageParser(FakeBackend(["1", "2", "3"]), page_seconds=None)
    documents = parser.parse(Blob.from_path(path, metadata={"customer": "Anna"}))
    assert [d.page_content for d in documents] == ["1", "2", "3"]
    assert [d.metadata["page"] for d in documents] == [1, 2, 3]
    assert {d.metadata["source"] for d in documents} == {str(path)}
    assert {d.metadata["customer"] for d in documents} == {"Anna"}


def test_frames_of_a_tiff_are_pages():
    blob = Blob.from_data(tiff((255, 0, 0), (0, 0, 255)))
    assert len(PageImageParser(FakeBackend()).parse(blob)) == 2


def test_pages_of_a_blob_with_a_name_of_its_own_are_found_again_by_its_path():
    blob = Blob.from_path(PAGES, metadata={"source": "The annual report"})
    parser = PageImageParser(text="layer", page_seconds=None)
    documents = parser.parse(blob)
    prompt = page_messages(documents[:1], "What?", page_seconds=None)
    assert len(prompt.messages[0].content) == 2
    assert documents[0].metadata["source"] == "The annual report"


def test_the_policy_decides_which_blobs_are_read(tmp_path):
    parser = PageImageParser(FakeBackend(), policy=SourcePolicy(roots=[tmp_path]))
    with pytest.raises(SourceNotAllowedError):
        next(parser.lazy_parse(Blob.from_path(DATA / "heart.png")))


def test_a_parser_without_a_model_cannot_transcribe():
    with pytest.raises(ParameterError, match="takes a model"):
        PageImageParser()
    assert isinstance(PageImageParser(FakeBackend()), BaseBlobParser)


def test_an_encrypted_blob_opens_with_its_password(tmp_path):
    path = tmp_path / "locked.pdf"
    path.write_bytes(locked_pdf())
    blob = Blob.from_path(path)
    for password in ("secret", {"locked.pdf": "secret"}, lambda name: "secret"):
        parser = PageImageParser(FakeBackend(["read"]), password=password)
        (document,) = parser.lazy_parse(blob)
        assert document.page_content == "read"
    parser = PageImageParser(FakeBackend(["read"]), password={"other.pdf": "secret"})
    with pytest.raises(PasswordError):
        list(parser.lazy_parse(blob))
