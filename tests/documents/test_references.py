"""Pages found again from what an index keeps of them; as many pages as a context holds."""

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llavakit.documents import (
    Page,
    PageReference,
    PageStore,
    View,
    ask_about,
    fit_pages,
    open_files,
    reopen,
)
from llavakit.errors import ContextLengthError, DocumentError, SourceNotAllowedError
from llavakit.sources import SourcePolicy
from llavakit.testing import IMAGE_TOKENS, FakeBackend
from llavakit.values import Image, Text
from tests.documents.test_pages import COLOURS, THREE, colour

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def pdf(tmp_path):
    path = tmp_path / "three.pdf"
    path.write_bytes(THREE)
    return path


def opened(path, **options):
    return list(open_files([path], page_seconds=None, **options))


def again(references, **options):
    return reopen(references, page_seconds=None, **options)


def referenced(path, store=None):
    return [PageReference.of(page, store=store) for page in opened(path)]


def test_a_page_is_drawn_again_from_its_document(pdf):
    references = referenced(pdf)
    pages = again([references[2], references[0]])
    assert [page.number for page in pages] == [3, 1]
    assert [colour(page) for page in pages] == [COLOURS[2], COLOURS[0]]
    assert [page.source for page in pages] == [str(pdf)] * 2


def test_a_relative_path_is_found_again_from_another_directory(pdf, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (first, *_) = referenced(Path(pdf.name))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert colour(again([first])[0]) == COLOURS[0]


def test_the_view_of_the_index_is_the_view_of_the_page_found_again(pdf):
    view = View(dpi=40)
    (page, *_) = opened(pdf, dpi=40)
    reference = PageReference.of(page, view)
    assert again([reference])[0].size == page.size
    assert reference.size == page.size


def test_a_page_outlives_its_document_in_a_store(pdf, tmp_path):
    store = PageStore(tmp_path / "store")
    references = referenced(pdf, store)
    pdf.unlink()
    assert [colour(p) for p in again(references, store=store)] == list(COLOURS[:3])
    # The reference names the file, so the store itself need not be at hand.
    assert [colour(p) for p in again(references)] == list(COLOURS[:3])


def test_a_damaged_picture_in_the_store_is_drawn_again(pdf, tmp_path):
    store = PageStore(tmp_path / "store")
    (first, *_) = referenced(pdf, store)
    Path(first.image_path).write_bytes(b"damaged")
    assert colour(again([first], store=store)[0]) == COLOURS[0]


def test_another_picture_in_the_place_of_the_kept_one_is_not_taken(pdf, tmp_path):
    store = PageStore(tmp_path / "store")
    first, second, _ = referenced(pdf, store)
    Path(first.image_path).write_bytes(Path(second.image_path).read_bytes())
    assert colour(again([first])[0]) == COLOURS[0]


def test_a_document_that_has_changed_is_an_error_and_not_another_page(pdf, tmp_path):
    (first, second, _) = referenced(pdf)
    swapped = dataclasses.replace(first, number=second.number)
    with pytest.raises(DocumentError, match="not the page that was indexed"):
        again([swapped])


def test_a_document_that_is_gone_says_so(pdf):
    (first, *_) = referenced(pdf)
    pdf.unlink()
    with pytest.raises(Exception, match=r"three\.pdf") as caught:
        again([first])
    assert "cannot be opened again" in str(caught.value)


def test_the_policy_decides_what_is_opened(pdf, tmp_path):
    store = PageStore(tmp_path / "store")
    references = referenced(pdf, store)
    fenced = SourcePolicy(roots=[tmp_path / "elsewhere"])
    with pytest.raises(SourceNotAllowedError):
        again(references[:1], policy=fenced)
    below = SourcePolicy(roots=[tmp_path / "store"])
    assert colour(again(references[:1], policy=below)[0]) == COLOURS[0]


_paths = st.text(min_size=1, max_size=20)
_references = st.builds(
    PageReference,
    source=_paths,
    number=st.integers(1, 10**6),
    sha256=st.from_regex(r"[0-9a-f]{64}", fullmatch=True),
    size=st.tuples(st.integers(1, 10**5), st.integers(1, 10**5)),
    dpi=st.floats(1, 1200),
    max_pixels=st.integers(1, 10**9),
    image_path=st.none() | _paths,
)


@given(_references)
def test_a_reference_survives_json_and_stores_that_keep_numbers_as_floats(reference):
    kept = json.loads(json.dumps(reference.metadata()))
    assert PageReference.from_metadata(kept) == reference
    floats = {key: float(v) if isinstance(v, int) else v for key, v in kept.items()}
    assert PageReference.from_metadata({**floats, "other": None}) == reference


@pytest.mark.parametrize("metadata", [{}, {"source": "a", "page": "x"}, {"source": "a", "page": 1}])
def test_metadata_of_other_loaders_are_refused_in_words(metadata):
    with pytest.raises(DocumentError, match="page loader or reader"):
        PageReference.from_metadata(metadata)


def test_pages_are_labelled_where_there_are_several(pdf):
    pages = opened(pdf)
    message = ask_about(pages[:2], "What?")
    assert message.text == f"Page 1 of {pdf}:\nPage 2 of {pdf}:\nWhat?"
    kinds = [type(part) for part in message.content]
    assert kinds == [Text, Image, Text, Image, Text]
    assert ask_about(pages[:1], "What?").text == "What?"
    assert ask_about(pages[:2], "What?", label=None).text == "What?"


@pytest.mark.parametrize("room", range(1, 4))
def test_as_many_pages_as_the_context_holds_the_best_first(pdf, room):
    pages = opened(pdf)
    backend = FakeBackend(context_length=100 + 3 * 20 + room * IMAGE_TOKENS)
    fitted = fit_pages(backend, pages, "What?", answer_tokens=100)
    assert [page.number for page in fitted.pages] == list(range(1, room + 1))
    assert fitted.pages + fitted.left_out == tuple(pages)
    assert fitted.tokens == backend.count_tokens(fitted.message)
    assert fitted.message.images == tuple(Image(page.picture) for page in fitted.pages)


def test_where_not_even_one_page_fits_it_is_told_with_both_numbers(pdf):
    with pytest.raises(ContextLengthError, match="with one page takes") as caught:
        fit_pages(FakeBackend(context_length=120), opened(pdf), "What?", answer_tokens=100)
    assert caught.value.context_length == 120


def test_a_question_without_pages_is_a_question():
    fitted = fit_pages(FakeBackend(), [], "What?")
    assert fitted.message.text == "What?"
    assert fitted.pages == fitted.left_out == ()


def test_the_demo_model_reads_a_page_that_was_found_again(demo_backend):
    pdf = Path("examples/data/pages.pdf")
    references = [PageReference.of(p) for p in open_files([pdf]) if isinstance(p, Page)]
    kept = [json.loads(json.dumps(reference.metadata())) for reference in references]
    pages = reopen([PageReference.from_metadata(kept[1])])
    fitted = fit_pages(demo_backend, pages, "What is the invoice number?")
    assert demo_backend.ask(pages[0].picture, "What is the invoice number?") == "1609"
    assert demo_backend.count_tokens(fitted.message) == fitted.tokens
