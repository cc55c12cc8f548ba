"""An index that is made, grows, changes and is searched."""

import gc
import json
import os
import shutil
import sqlite3
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llavakit.documents import Document, View, open_files
from llavakit.embeddings import Embedding
from llavakit.errors import (
    DocumentError,
    EngineClosedError,
    ModelError,
    ParameterError,
    SourceNotAllowedError,
)
from llavakit.retrieval import PageIndex
from llavakit.retrieval.ledger import Ledger
from llavakit.sources import SourcePolicy
from tests.documents.test_attachments import with_attached
from tests.documents.test_pages import tiff
from tests.retrieval.colours import ColourEmbedder
from tests.retrieval.documents import coloured, picture

pytestmark = pytest.mark.timeout(120)

HERE = View(page_seconds=None)
"""PDFs are drawn in this process, which is faster."""


@pytest.fixture
def folder(tmp_path):
    """Seven pages in four documents."""
    folder = tmp_path / "in"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.pdf").write_bytes(coloured("red", "green", "blue", words="alpha"))
    (folder / "b.tif").write_bytes(tiff((255, 255, 0), (0, 0, 0)))
    picture(folder / "c.png", "white", "red")
    (folder / "deep" / "d.pdf").write_bytes(coloured("cyan", words="delta"))
    return folder


def opened(out, embedder=None, **options):
    return PageIndex(out, embedder or ColourEmbedder(), **{"view": HERE, **options})


@pytest.fixture
def index(tmp_path):
    with opened(tmp_path / "index") as index:
        yield index


def content(index):
    """All that an index says of its pages, in an order that does not depend on its history."""
    pages = index.search("red", 1000) if len(index) else []
    found = [(one.reference.source, one.reference.number, one.reference.sha256) for one in pages]
    assert len(found) == len(index)
    return sorted(found)


def names(hits):
    return [(Path(one.reference.source).name, one.reference.number) for one in hits]


def test_pages_are_found_by_what_they_show(index, folder):
    changes = index.update(folder)
    assert (changes.added, changes.pages, changes.failures, len(index)) == (7, 7, (), 7)
    assert sorted(map(os.path.basename, changes.new)) == ["a.pdf", "b.tif", "c.png", "d.pdf"]
    assert changes.without_text == 3
    assert names(index.search("green", 1)) == [("a.pdf", 2)]
    assert names(index.search("white red", 1)) == [("c.png", 1)]
    (hit,) = index.search("yellow", 1)
    assert (hit.ranks, hit.question, hit.text) == ({"pixels": 1}, "yellow", "")
    assert hit.score == pytest.approx(1, abs=1e-3)
    assert hit.page().picture.rgb.getpixel((1, 1)) == (255, 255, 0)
    assert index.documents[str(folder / "a.pdf")] == 3


def test_pages_are_found_by_their_words(index, folder):
    index.update(folder)
    hits = index.search("delta", 5, "text")
    assert names(hits) == [("d.pdf", 1)] and hits[0].text == "delta 1"
    assert hits[0].ranks == {"text": 1}
    assert index.search("omega", 5, "text") == []


def test_hybrid_fuses_both_ranks(index, folder):
    index.update(folder)
    hits = index.search("alpha blue", 7, "hybrid")
    assert names(hits)[0] == ("a.pdf", 3)  # blue, and one of three that say alpha
    for hit in hits:
        assert hit.score == pytest.approx(sum(1 / (60 + rank) for rank in hit.ranks.values()))
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    assert len(hits) == 7 and hits[0].ranks.keys() == {"pixels", "text"}
    assert index.search("alpha blue", 2, "hybrid") == hits[:2]


def test_an_update_of_what_is_there_does_nothing(index, folder):
    index.update(folder)
    embedded = index.embedder.images
    again = index.update([folder])
    assert (again.added, again.kept, again.new, again.changed, again.removed) == (0, 4, (), (), ())
    assert index.embedder.images == embedded


def test_new_changed_and_deleted_files(index, folder):
    index.update(folder)
    (folder / "a.pdf").write_bytes(coloured("grey", "red"))
    (folder / "b.tif").unlink()
    picture(folder / "new.png", "blue", "green")
    embedded = index.embedder.images
    changes = index.update(folder)
    assert (changes.added, changes.pages, changes.kept) == (3, 5 + 0, 2)
    assert [Path(name).name for name in changes.new] == ["new.png"]
    assert [Path(name).name for name in changes.changed] == ["a.pdf"]
    assert [Path(name).name for name in changes.removed] == ["b.tif"]
    assert index.embedder.images - embedded == 3
    assert names(index.search("grey", 1)) == [("a.pdf", 1)]
    assert ("b.tif", 1) not in names(index.search("yellow", 9))
    assert index.search("alpha", 9, "text") == []  # the words went with the old pages


def test_an_index_that_grew_is_the_one_that_is_made_at_once(index, folder, tmp_path):
    index.update(folder)
    (folder / "a.pdf").write_bytes(coloured("grey", "red"))
    (folder / "b.tif").unlink()
    picture(folder / "new.png", "blue", "green")
    index.update(folder)
    with opened(tmp_path / "other") as other:
        other.update(folder)
        assert content(index) == content(other) and len(index) == 5
        for question in ("green", "white red", "alpha grey"):
            one, two = (which.search(question, 9) for which in (index, other))
            assert {(hit.reference, round(hit.score, 6)) for hit in one} == {
                (hit.reference, round(hit.score, 6)) for hit in two
            }


def test_a_file_that_was_only_touched_is_not_read_again(index, folder):
    index.update(folder)
    embedded = index.embedder.images
    os.utime(folder / "a.pdf", ns=(1, 1))
    assert index.update(folder).kept == 4
    os.utime(folder / "a.pdf", ns=(1, 1))
    assert index.embedder.images == embedded


def test_a_file_of_the_same_size_and_another_content_is_read_again(index, folder):
    (folder / "e.pdf").write_bytes(coloured("red"))
    index.update(folder)
    (folder / "e.pdf").write_bytes(coloured("red").replace(b"1.0 0.0 0.0", b"0.0 0.0 1.0"))
    os.utime(folder / "e.pdf", ns=(1, 1))
    assert [Path(one).name for one in index.update(folder).changed] == ["e.pdf"]
    assert {("e.pdf", 1), ("a.pdf", 3)} == set(names(index.search("blue", 2)))


def test_documents_elsewhere_stay(index, folder, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    picture(other / "x.png", "blue", "yellow")
    index.update([folder, other])
    (other / "x.png").unlink()
    assert index.update(folder / "a.pdf").removed == ()
    assert index.update(folder).pages == 8
    picture(other / "y.png", "grey")
    changes = index.update(other)
    assert [Path(one).name for one in changes.removed] == ["x.png"] and changes.pages == 8


def test_a_folder_that_is_not_there_loses_no_pages(index, folder):
    index.update(folder)
    folder.rename(folder.with_name("away"))  # a disk that is not mounted
    changes = index.update(folder)
    assert changes.pages == 7 and changes.removed == ()
    assert [one.type for one in changes.failures] == ["SourceNotFoundError"]
    folder.with_name("away").rename(folder)
    back = index.update(folder)
    assert (back.pages, back.kept, index.failures) == (7, 4, [])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list every folder")
def test_a_folder_that_may_not_be_listed_loses_no_pages(index, folder):
    index.update(folder)
    (folder / "deep").chmod(0)
    try:
        changes = index.update(folder)
    finally:
        (folder / "deep").chmod(0o700)
    assert changes.pages == 7 and len(changes.failures) == 1


def test_a_file_that_was_named_and_is_gone_leaves_the_index(index, folder):
    index.update(folder)
    (folder / "c.png").unlink()
    changes = index.update(folder / "c.png")
    assert changes.pages == 6 and changes.failures[0].type == "SourceNotFoundError"
    picture(folder / "c.png", "grey")
    assert index.update(folder / "c.png").pages == 7 and index.failures == []


def test_what_cannot_be_read_is_listed_with_its_page(index, folder, tmp_path):
    (folder / "broken.pdf").write_bytes(b"%PDF-1.7 and no more")
    (folder / "part.tif").write_bytes(tiff((1, 2, 3), (4, 5, 6), (7, 8, 9))[:-70])
    changes = index.update(folder)
    lost = {(Path(one.source).name, one.page) for one in index.failures}
    assert ("broken.pdf", None) in lost and any(name == "part.tif" for name, _ in lost)
    assert tuple(index.failures) == changes.failures
    assert all(one.message and one.type.endswith("Error") for one in index.failures)
    assert index.update(folder).kept == 6  # they are known, and not tried again
    assert index.update(folder, retry_failed=True).kept == 4
    assert {(Path(one.source).name, one.page) for one in index.failures} == lost


def test_a_page_that_the_model_refuses_costs_that_page_alone(folder, tmp_path):
    pages = list(open_files(folder, page_seconds=None))
    embedder = ColourEmbedder(refuses=[pages[1].digest])
    with opened(tmp_path / "index", embedder) as index:
        changes = index.update(folder)
        assert changes.added == 6
        (failure,) = changes.failures
        assert (Path(failure.source).name, failure.page) == ("a.pdf", 2)
        assert failure.type == "ImageDecodeError" and failure.lost == 1
        embedder.refuses.clear()
        assert index.update(folder, retry_failed=True).pages == 7
        assert index.failures == []


def test_vectors_that_are_not_numbers_are_a_failure(folder, tmp_path):
    class Broken(ColourEmbedder):
        def _image(self, image):
            found = super()._image(image)
            found.vectors[0, 0] = float("nan")
            return found

    with opened(tmp_path / "index", Broken()) as index:
        changes = index.update(folder)
        assert changes.added == 0 and len(changes.failures) == 7
        assert "not finite" in changes.failures[0].message


def test_vectors_of_another_length_end_the_update(folder, tmp_path):
    class Narrow(ColourEmbedder):
        def _image(self, image):
            return Embedding(super()._image(image).vectors[:, :7])

    with (
        opened(tmp_path / "index", Narrow()) as index,
        pytest.raises(ModelError, match="vectors of 7 numbers and says 24"),
    ):
        index.update(folder)


def test_a_model_that_fails_ends_the_update_and_the_next_one_goes_on(folder, tmp_path):
    class Failing(ColourEmbedder):
        def _image(self, image):
            if self.images == 3:
                raise EngineClosedError("The engine has died.")
            return super()._image(image)

    embedder = Failing()
    with opened(tmp_path / "index", embedder) as index:
        with pytest.raises(EngineClosedError):
            index.update(folder, batch=1)
        embedder.images = 100
        index.update(folder, batch=1)
        assert len(content(index)) == 7


def test_another_embedder_is_refused(index, folder, tmp_path):
    index.update(folder)
    with pytest.raises(ParameterError, match=r"another embedder \(colours, 24 numbers\)"):
        opened(tmp_path / "index", ColourEmbedder("other"))
    narrow = ColourEmbedder()
    narrow.dimensions = 8
    with pytest.raises(ParameterError, match="cannot be compared"):
        opened(tmp_path / "index", narrow)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"pool": 1}, "pool=3"),
        ({"store": "qdrant"}, "store='lance'"),
        ({"view": View(dpi=72)}, "dpi=144"),
    ],
)
def test_other_settings_than_the_index_has_are_refused(index, tmp_path, options, words):
    with pytest.raises(ParameterError, match=words):
        opened(tmp_path / "index", **options)


def test_an_index_knows_its_own_settings(tmp_path, folder):
    with opened(tmp_path / "index", pool=1, store="qdrant", view=View(dpi=72)) as index:
        index.update(folder)
        found = index.search("green", 1)
    with PageIndex(tmp_path / "index", ColourEmbedder(), must_exist=True) as again:
        assert again.search("green", 1) == found
        assert found[0].reference.dpi == 72 and found[0].reference.size == (72, 144)


def test_a_folder_of_something_else_is_refused(folder, tmp_path):
    with pytest.raises(ParameterError, match="holds no index and other files"):
        opened(folder)
    with pytest.raises(ParameterError, match="llavakit index DIR"):
        opened(tmp_path / "nothing", must_exist=True)
    assert not (tmp_path / "nothing").exists()
    with pytest.raises(ParameterError, match="embedder"):
        opened(tmp_path / "nothing", "demo")


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda index: index.search(" "), "question is"),
        (lambda index: index.search("x", 0), "k is 0"),
        (lambda index: index.search("x", True), "k is True"),
        (lambda index: index.search("x", 1, "magic"), "mode is"),
        (lambda index: index.update(b"%PDF"), "paths is"),
        (lambda index: index.update("in", batch=0), "batch is 0"),
        (lambda index: index.update(["a.pdf#pages=1", "a.pdf#pages=2"]), "named twice"),
    ],
)
def test_arguments_that_make_no_sense(index, call, words):
    with pytest.raises(ParameterError, match=words):
        call(index)


def test_pages_of_a_range_are_indexed_and_another_range_is_a_change(index, folder):
    index.update(f"{folder / 'a.pdf'}#pages=2-3")
    assert sorted(names(index.search("red", 9))) == [("a.pdf", 2), ("a.pdf", 3)]
    changes = index.update(Document(folder / "a.pdf", "1-2"))
    assert len(changes.changed) == 1
    assert sorted(names(index.search("red", 9))) == [("a.pdf", 1), ("a.pdf", 2)]


def test_relative_paths_are_found_from_anywhere(index, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder)
    index.update("a.pdf")
    monkeypatch.chdir(tmp_path)
    assert index.search("green", 1)[0].page().number == 2
    assert index.update(folder / "a.pdf").kept == 1


def test_an_address_of_a_file_is_that_file(index, folder):
    index.update(folder)
    assert index.update((folder / "a.pdf").as_uri()).kept == 1
    assert index.update(f"{(folder / 'a.pdf').as_uri()}#pages=2").pages == 5


def test_attached_documents_come_and_go_with_theirs(index, folder):
    index.update(folder)
    (folder / "p.pdf").write_bytes(with_attached(coloured("white"), {"x.pdf": coloured("black")}))
    index.update(folder)
    inside = f"{folder / 'p.pdf'}#attachment=x.pdf"
    found = [hit for hit in index.search("black", 9) if hit.reference.source == inside]
    assert len(found) == 1 and found[0].page().number == 1
    assert index.documents[str(folder / "p.pdf")] == 2 and index.update(folder).kept == 5
    (folder / "p.pdf").unlink()
    assert index.update(folder).pages == 7


def test_a_page_that_has_changed_is_not_shown_for_the_one_that_was_indexed(index, folder):
    index.update(folder)
    (folder / "a.pdf").write_bytes(coloured("grey", "grey", "grey"))
    (hit,) = index.search("green", 1)
    with pytest.raises(DocumentError, match="not the page that was indexed"):
        hit.page()
    with pytest.raises(SourceNotAllowedError):
        hit.page(SourcePolicy(allow_files=False))


def test_two_updates_at_once_are_refused(index, folder, tmp_path):
    seen = []

    def second(progress):
        with opened(tmp_path / "index") as other, pytest.raises(ParameterError) as refused:
            other.update(folder)
        seen.append(str(refused.value))

    index.update(folder, progress=second)
    assert "Another process is updating" in seen[0] and len(index) == 7


def test_progress_tells_what_is_on_the_disk(index, folder):
    told = []
    index.update(folder, progress=told.append)
    assert [Path(one.item.source).name for one in told] == [
        "a.pdf", "a.pdf", "a.pdf", "b.tif", "b.tif", "c.png", "d.pdf",
    ]  # fmt: skip
    assert {one.of for one in told} == {4} and told[-1].documents == 4


def test_names_that_are_not_unicode_are_indexed(index, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    picture(folder / "plain.png", "red", "blue")
    shutil.copy(folder / "plain.png", os.fsencode(folder) + b"/\xff.png")
    shutil.copy(folder / "plain.png", folder / 'it\'s; DROP -- "quoted".png')
    index.update(folder)
    assert len(content(index)) == 3 and index.update(folder).kept == 3
    assert all(hit.page().size == (60, 60) for hit in index.search("red", 3))


def test_a_ledger_of_another_version_is_refused(index, tmp_path):
    index._ledger._db.execute("UPDATE settings SET value = '99' WHERE name = 'format'")
    index._ledger._db.commit()
    with pytest.raises(ParameterError, match="another version"):
        opened(tmp_path / "index")


def test_a_damaged_ledger_is_one_sentence(tmp_path):
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "index.sqlite").write_bytes(b"no database" * 100)
    with pytest.raises(Exception, match="cannot be read or written"):
        opened(tmp_path / "index")


KINDS = {
    "pdf": lambda path, n: path.with_suffix(".pdf").write_bytes(coloured(*["red", "blue"][:n])),
    "tif": lambda path, n: path.with_suffix(".tif").write_bytes(tiff(*[(9, 9, 9), (8, 8, 8)][:n])),
    "png": lambda path, n: picture(path.with_suffix(".png"), "green"),
    "broken": lambda path, n: path.with_suffix(".pdf").write_bytes(b"%PDF-1.7 no more"),
    "empty": lambda path, n: path.with_suffix(".jpg").write_bytes(b""),
}
STEPS = st.lists(
    st.tuples(st.integers(0, 3), st.sampled_from([*KINDS, "delete"]), st.integers(1, 2)),
    min_size=1,
    max_size=5,
)


def test_an_index_that_is_dropped_closes_its_file(tmp_path):
    ledger = Ledger(tmp_path / "index.sqlite")
    database = ledger._db
    del ledger
    gc.collect()
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        database.execute("SELECT 1")


@given(st.lists(STEPS, min_size=1, max_size=2))
@settings(max_examples=5, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_page_of_the_folder_is_in_the_index_or_among_the_failures(tmp_path_factory, rounds):
    root = tmp_path_factory.mktemp("any")
    folder = root / "in"
    folder.mkdir()
    with opened(root / "index") as index:
        for steps in rounds:
            for number, kind, pages in steps:
                for old in folder.glob(f"{number}.*"):
                    old.unlink()
                if kind != "delete":
                    KINDS[kind](folder / str(number), pages)
            index.update(folder, batch=2)
            there = {(source, page) for source, page, _ in content(index)}
            lost = {(one.source, one.page) for one in index.failures}
            now = {(one.source, one.number) for one in open_files(folder, page_seconds=None)}
            assert there | lost == now and not there & lost
            assert sum(index.documents.values()) == len(index)


def test_the_reference_is_what_other_rooms_write(index, folder):
    index.update(folder)
    (hit,) = index.search("cyan", 1)
    metadata = json.loads(json.dumps(hit.reference.metadata()))
    assert type(hit.reference).from_metadata(metadata) == hit.reference
