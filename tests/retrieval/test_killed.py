"""An update that is killed goes on to the index that an undisturbed one makes."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from llavakit.retrieval import PageIndex
from tests.documents.test_attachments import with_attached
from tests.documents.test_pages import tiff
from tests.retrieval.colours import ColourEmbedder
from tests.retrieval.documents import coloured, picture
from tests.retrieval.test_index import HERE, content, opened

pytestmark = pytest.mark.timeout(180)

ROOT = Path(__file__).parents[2]
RARE = [("lance", 1), ("qdrant", 1), ("qdrant", 3)]


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.pdf").write_bytes(coloured("red", "green", "blue", "cyan", words="alpha"))
    (folder / "b.tif").write_bytes(tiff(*[(number, 0, 0) for number in range(10, 100, 10)]))
    (folder / "c.pdf").write_bytes(b"%PDF-1.7 and no more")
    picture(folder / "d.png", "white", "red")
    return folder


@pytest.fixture
def with_a_portfolio(folder):
    """The same and a document with another one attached: two pages each."""
    attached = {"x.pdf": coloured("black", "grey")}
    (folder / "e.pdf").write_bytes(with_attached(coloured("white", "red"), attached))
    return folder


def undisturbed(folder, out):
    with opened(out) as index:
        index.update(folder)
        return content(index), index.failures


class Killed(BaseException):
    """What a kill is to the code that it ends: nothing behind it runs."""


STEPS = [
    ("LanceVectors", "add", "before"),
    ("LanceVectors", "add", "after"),
    ("Ledger", "begin", "after"),
    ("Ledger", "settle", "before"),
    ("Ledger", "settle", "after"),
    ("LanceVectors", "settle", "before"),
]


@pytest.mark.parametrize("places", [2, 4])
def test_a_document_with_attachments_goes_on(with_a_portfolio, tmp_path, monkeypatch, places):
    from llavakit.retrieval import updating

    monkeypatch.setattr(updating, "COMMIT_PAGES", 1)
    folder = with_a_portfolio
    told = []

    def stop(progress):
        told.append(Path(progress.item.source).name.startswith("e.pdf"))
        if sum(told) == places:
            raise KeyboardInterrupt

    with opened(tmp_path / "index") as index:
        with pytest.raises(KeyboardInterrupt):
            index.update(folder, batch=1, progress=stop)
        index.update(folder, batch=1)
        assert (content(index), index.failures) == undisturbed(folder, tmp_path / "whole")
        assert index.documents[str(folder / "e.pdf")] == 4


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize(("owner", "step", "when"), STEPS)
def test_wherever_it_ends_the_index_is_the_same(
    folder, tmp_path, monkeypatch, owner, step, when, times
):
    from llavakit.retrieval import updating
    from llavakit.retrieval.lance import LanceVectors
    from llavakit.retrieval.ledger import Ledger

    monkeypatch.setattr(updating, "COMMIT_PAGES", 2)
    whole = undisturbed(folder, tmp_path / "whole")
    cls = {"LanceVectors": LanceVectors, "Ledger": Ledger}[owner]
    original, calls = getattr(cls, step), []

    def ending(self, *args, **kwargs):
        calls.append(step)
        if when == "before" and len(calls) == times:
            raise Killed
        result = original(self, *args, **kwargs)
        if when == "after" and len(calls) == times:
            raise Killed
        return result

    index = opened(tmp_path / "index")
    with monkeypatch.context() as patch:
        patch.setattr(cls, step, ending)
        try:
            index.update(folder, batch=2)
        except Killed:
            pass
        else:
            assert len(calls) < times
    index.close()
    with opened(tmp_path / "index") as again:
        again.update(folder, batch=2)
        assert (content(again), again.failures) == whole
        assert again.update(folder).kept == 4


def test_a_change_while_it_was_dead_is_seen(folder, tmp_path, monkeypatch):
    from llavakit.retrieval import updating

    monkeypatch.setattr(updating, "COMMIT_PAGES", 2)

    def stop(progress):
        if Path(progress.item.source).name == "b.tif":
            raise KeyboardInterrupt

    with opened(tmp_path / "index") as index:
        with pytest.raises(KeyboardInterrupt):
            index.update(folder, batch=2, progress=stop)
        (folder / "b.tif").write_bytes(tiff((1, 1, 1), (2, 2, 2)))
        (folder / "a.pdf").unlink()
        index.update(folder)
        assert (content(index), index.failures) == undisturbed(folder, tmp_path / "whole")


def test_pages_that_were_committed_are_not_embedded_again(folder, tmp_path, monkeypatch):
    from llavakit.retrieval import updating

    monkeypatch.setattr(updating, "COMMIT_PAGES", 2)
    embedder = ColourEmbedder()
    told = []

    def stop(progress):
        told.append(progress.item)
        if len(told) == 8:
            raise KeyboardInterrupt

    with opened(tmp_path / "index", embedder) as index:
        with pytest.raises(KeyboardInterrupt):
            index.update(folder, batch=2, progress=stop)
        embedder.images = 0
        index.update(folder, batch=2)
        assert len(index) == 14 and embedder.images == 14 - 8


@pytest.mark.parametrize(
    ("store", "renderers"),
    [("lance", 3), *(pytest.param(*one, marks=pytest.mark.slow) for one in RARE)],
)
def test_a_program_that_is_killed_goes_on(folder, tmp_path, store, renderers):
    whole = undisturbed(folder, tmp_path / "whole")
    out = tmp_path / "index"
    command = [sys.executable, "-m", "tests.retrieval.colours", str(out), store, str(renderers)]
    command.append(str(folder))
    paths = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": paths}
    )
    try:
        for _ in range(5):
            assert process.stdout.readline()
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.communicate()
    with PageIndex(out, ColourEmbedder(), view=HERE) as index:
        assert 5 <= len(index) < 14
        embedded = index.embedder.images
        index.update(folder)
        assert (content(index), index.failures) == whole
        assert index.embedder.images - embedded < 14
