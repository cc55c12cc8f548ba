"""What is attached to PDFs: portfolios, and forms that only Adobe's programs draw."""

import io
import logging

import pytest

from llavakit.documents import (
    Failure,
    Job,
    Page,
    PageReference,
    Task,
    View,
    count_pages,
    open_files,
    reopen,
    run_job,
)
from llavakit.testing import FakeBackend
from tests.documents.drawn import print_lines, sheet
from tests.documents.test_archives import png
from tests.documents.test_jobs import answer
from tests.documents.test_pages import COLOURS, THREE, colour, tiff

pikepdf = pytest.importorskip("pikepdf")
pytestmark = pytest.mark.timeout(60)


def with_attached(data: bytes, files: dict[str, bytes], *, portfolio: bool = True) -> bytes:
    out = io.BytesIO()
    with pikepdf.open(io.BytesIO(data)) as document:
        for name, content in files.items():
            document.attachments[name] = pikepdf.AttachedFileSpec(document, content, filename=name)
        if portfolio:
            document.Root.Collection = pikepdf.Dictionary(Type=pikepdf.Name.Collection)
        document.save(out)
    return out.getvalue()


COVER = sheet(print_lines(["cover"]))


@pytest.fixture
def portfolio(tmp_path):
    files = {"a.pdf": THREE, "b.tif": tiff(*COLOURS[:2]), "c.png": png((9, 9, 9)),
             "d.pdf": b"rubbish", "data.xml": b"<x/>"}  # fmt: skip
    path = tmp_path / "in" / "portfolio.pdf"
    path.parent.mkdir()
    path.write_bytes(with_attached(COVER, files))
    return path


@pytest.mark.parametrize("page_seconds", [None, 30])
def test_attachments_are_documents_of_their_own(portfolio, page_seconds, caplog):
    with caplog.at_level(logging.WARNING, "llavakit"):
        items = list(open_files(portfolio, page_seconds=page_seconds))
    assert [(item.source.partition("#")[2], item.number, type(item)) for item in items] == [
        ("", 1, Page),
        *(("attachment=a.pdf", number, Page) for number in (1, 2, 3)),
        *(("attachment=b.tif", number, Page) for number in (1, 2)),
        ("attachment=c.png", 1, Page),
        ("attachment=d.pdf", None, Failure),
    ]
    assert [colour(item) for item in items[1:4]] == COLOURS and "1 .xml" in caplog.text
    assert count_pages(portfolio) == 1
    assert count_pages(f"{portfolio}#attachment=a.pdf") == 3


def test_a_page_of_an_attachment_is_found_again_from_anywhere(portfolio, monkeypatch):
    monkeypatch.chdir(portfolio.parent)
    pages = [item for item in open_files("portfolio.pdf", page_seconds=None)
             if isinstance(item, Page)]  # fmt: skip
    references = [PageReference.of(page) for page in pages]
    monkeypatch.chdir("/")
    again = reopen(references, page_seconds=None)
    assert [page.digest for page in again] == [page.digest for page in pages]
    (failure,) = open_files(f"{portfolio}#attachment=gone.pdf")
    assert "no attachment 'gone.pdf'" in str(failure.error)


def test_chosen_pages_are_those_of_the_document_alone(portfolio):
    assert [item.source for item in open_files(portfolio, pages="1-", page_seconds=None)] == [
        str(portfolio)
    ]


def test_attachments_of_attachments_end(tmp_path):
    data = THREE
    for _ in range(5):
        data = with_attached(COVER, {"in.pdf": data}, portfolio=False)
    items = list(open_files([data], page_seconds=None))
    assert [type(item) for item in items] == [Page] * 4 + [Failure]
    assert "not followed" in str(items[-1].error)


@pytest.mark.parametrize("kept", range(9))
def test_a_run_over_a_portfolio_goes_on_to_the_same_file(portfolio, tmp_path, kept):
    job = Job((str(portfolio.parent),), Task("transcribe"), "fake", view=View(page_seconds=None))
    (portfolio.parent / "z.pdf").write_bytes(THREE)
    whole, out = tmp_path / "whole", tmp_path / "out"
    run_job(job, FakeBackend(answer), whole)
    seen = []

    def end(reading):
        seen.append(reading)
        if len(seen) > kept:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_job(job, FakeBackend(answer), out, progress=end)
    run_job(job, FakeBackend(answer), out)
    assert out.read_bytes() == whole.read_bytes()
    backend = FakeBackend(answer)
    assert run_job(job, backend, out).earlier == 11 and not backend.requests


def xfa(needs_rendering: bool) -> bytes:
    out = io.BytesIO()
    with pikepdf.open(io.BytesIO(sheet(print_lines(["Please wait..."])))) as document:
        form = pikepdf.Stream(document, b"<xdp:xdp xmlns:xdp='http://ns.adobe.com/xdp/'/>")
        document.Root.AcroForm = pikepdf.Dictionary(
            Fields=pikepdf.Array(), XFA=document.make_indirect(form)
        )
        if needs_rendering:
            document.Root.NeedsRendering = True
        document.save(out)
    return out.getvalue()


def test_a_form_that_only_adobe_draws_is_reported_and_no_page(tmp_path):
    (failure,) = open_files([xfa(True)], page_seconds=None)
    assert isinstance(failure, Failure) and failure.number == 1 and "XFA" in str(failure.error)
    (page,) = open_files([xfa(False)], page_seconds=None)
    assert isinstance(page, Page)
