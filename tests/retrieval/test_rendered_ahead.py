"""An index whose pages several processes render ahead is that of one, wherever it was killed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llavakit.documents import View
from llavakit.retrieval import updating
from llavakit.retrieval.lance import LanceVectors
from llavakit.retrieval.ledger import Ledger
from tests.documents.test_attachments import with_attached
from tests.documents.test_pages import tiff
from tests.retrieval.colours import COLOURS, ColourEmbedder
from tests.retrieval.documents import coloured, picture
from tests.retrieval.test_index import content, opened

pytestmark = pytest.mark.timeout(180)

NAMES = list(COLOURS)


def pages(count: int, seed: int) -> list[str]:
    return [NAMES[(seed + number) % len(NAMES)] for number in range(count)]


KINDS: dict[str, Callable[[Path, int], object]] = {
    "pdf": lambda at, n: at.with_suffix(".pdf").write_bytes(coloured(*pages(2, n), words="a")),
    "long": lambda at, n: at.with_suffix(".pdf").write_bytes(coloured(*pages(11, n))),
    "tif": lambda at, n: at.with_suffix(".tif").write_bytes(tiff((n, 9, 9), (8, n, 8), (n, n, 0))),
    "png": lambda at, n: picture(at.with_suffix(".png"), NAMES[n]),
    "broken": lambda at, n: at.with_suffix(".pdf").write_bytes(b"%PDF-1.7 " + bytes([65 + n])),
    "empty": lambda at, n: at.with_suffix(".jpg").write_bytes(b""),
    "portfolio": lambda at, n: at.with_suffix(".pdf").write_bytes(
        with_attached(coloured(*pages(2, n)), {"x.pdf": coloured(*pages(2, n + 1))})
    ),
    "gone": lambda at, n: None,
}
FILES = st.tuples(st.integers(0, 7), st.sampled_from(list(KINDS)), st.integers(0, 7))
ROUNDS = st.lists(
    st.tuples(st.lists(FILES, min_size=1, max_size=6), st.lists(st.integers(1, 8), max_size=3)),
    min_size=1,
    max_size=2,
)


class Killed(BaseException):
    """What a kill is to the code that it ends: nothing behind it runs."""


@contextmanager
def killed_at(step: int):
    """End the run before or behind its ``step``-th write to the disk."""
    calls = 0

    def ending(original):
        def write(self, *args, **kwargs):
            nonlocal calls
            calls += 1
            if calls == step:
                raise Killed
            found = original(self, *args, **kwargs)
            calls += 1
            if calls == step:
                raise Killed
            return found

        return write

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(updating, "COMMIT_PAGES", 3)
        for owner, name in ((LanceVectors, "add"), (Ledger, "begin"), (Ledger, "settle")):
            patch.setattr(owner, name, ending(getattr(owner, name)))
        yield


@given(rounds=ROUNDS, renderers=st.integers(2, 4), batch=st.integers(1, 4))
@settings(max_examples=4)
def test_several_renderers_and_kills_make_the_index_of_one_undisturbed_run(
    tmp_path_factory, rounds, renderers, batch
):
    root = tmp_path_factory.mktemp("ahead")
    folder = root / "in"
    folder.mkdir()
    for files, kills in rounds:
        for number, kind, seed in files:
            for old in folder.glob(f"{number}.*"):
                old.unlink()
            KINDS[kind](folder / str(number), seed)
        for step in kills:
            with opened(root / "index", view=View()) as index, killed_at(step):
                try:
                    index.update(folder, batch=batch, renderers=renderers)
                except Killed:
                    continue
    with opened(root / "index", view=View()) as index, opened(root / "whole") as whole:
        index.update(folder, batch=batch, renderers=renderers)
        whole.update(folder)
        assert content(index) == content(whole)
        assert sorted(map(str, index.failures)) == sorted(map(str, whole.failures))
        assert index.documents == whole.documents
        again = index.update(folder, renderers=renderers)
        assert (again.added, again.new, again.changed, again.removed) == (0, (), (), ())


class Watching(ColourEmbedder):
    """Notes what runs beside the embedding of each batch."""

    def __init__(self, look: Callable[[], object]) -> None:
        super().__init__()
        self.seen: list[object] = []
        self._look = look

    def embed(self, **contents):
        self.seen.append(self._look())
        return super().embed(**contents)


def running() -> int:
    return sum(one.name == "llavakit-renderer" for one in threading.enumerate())


@pytest.mark.parametrize(
    ("view", "given", "threads"),
    [(View(), 3, 3), (View(renderers=2), None, 2), (View(renderers=3), 1, 0)],
)
def test_as_many_renderers_run_as_are_asked_for(tmp_path, view, given, threads):
    for number in range(5):
        (tmp_path / f"{number}.pdf").write_bytes(coloured(*pages(3, number)))
    embedder = Watching(running)
    with opened(tmp_path / "index", embedder, view=view) as index:
        index.update(tmp_path, batch=2, renderers=given)
        assert len(index) == 15
    assert max(embedder.seen) == threads and running() == 0


def test_a_document_begins_in_the_ledger_when_its_first_page_is_used(tmp_path):
    names = [str(tmp_path / f"{number}.pdf") for number in range(4)]
    for number, name in enumerate(names):
        Path(name).write_bytes(coloured(*pages(2, number)))
    embedder = Watching(lambda: list(index.documents))
    with opened(tmp_path / "index", embedder, view=View()) as index:
        index.update(tmp_path, batch=2, renderers=2)
    assert embedder.seen == [names[:count] for count in (1, 2, 3, 4)]


def test_a_file_that_changes_while_it_waits_for_its_turn_is_seen_by_the_next_update(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.pdf").write_bytes(coloured("red"))

    def change():
        (tmp_path / "b.pdf").write_bytes(coloured("blue", "green"))

    embedder = Watching(change)
    with opened(tmp_path / "index", embedder, view=View()) as index:
        index.update(tmp_path, batch=1, renderers=2)
        index.embedder = ColourEmbedder()
        index.update(tmp_path)
        with opened(tmp_path / "whole") as whole:
            whole.update(tmp_path)
            assert content(index) == content(whole)
            assert len(index) == 3


@pytest.mark.parametrize("wrong", [0, -1, 1.5, "2"])
def test_a_number_of_renderers_that_makes_no_sense_is_refused(tmp_path, wrong):
    with opened(tmp_path / "index") as index, pytest.raises(Exception, match="renderers"):
        index.update(tmp_path, renderers=wrong)
