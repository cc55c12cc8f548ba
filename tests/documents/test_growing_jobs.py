"""Folders that grow while they are read, run after run; pages that are tried again."""

import json
import os
from pathlib import Path

import pytest

from llavakit.documents import Job, Task, View, _pdf, run_job
from llavakit.errors import DocumentError, RendererKilledError
from llavakit.testing import FakeBackend
from tests.documents.hostile import RED, page
from tests.documents.test_jobs import answer
from tests.documents.test_pages import COLOURS, THREE, tiff

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "b.pdf").write_bytes(THREE)
    (folder / "d.tif").write_bytes(tiff(*COLOURS[:2]))
    return folder


class Run:
    """Runs over one folder into one file."""

    def __init__(self, folder, out):
        self.folder, self.out = folder, out
        self.backend = FakeBackend(answer)

    def __call__(self, **options):
        job = Job((str(self.folder),), Task("transcribe"), "fake", view=View(page_seconds=None))
        asked = len(self.backend.requests)
        self.tally = run_job(job, self.backend, self.out, **options)
        self.asked = len(self.backend.requests) - asked
        return self.tally

    def lines(self):
        lines = [json.loads(line) for line in self.out.read_text().splitlines()]
        return [(Path(line["source"]).name, line["page"], bool(line["error"])) for line in lines]

    def undisturbed(self):
        """The bytes of a run from the beginning."""
        other = Run(self.folder, self.out.with_suffix(".whole"))
        other.out.unlink(missing_ok=True)
        other(restart=True)
        return other.out.read_bytes()


@pytest.fixture
def run(folder, tmp_path):
    run = Run(folder, tmp_path / "out.jsonl")
    run()
    return run


def test_new_documents_are_read_and_stand_where_an_undisturbed_run_has_them(run, folder):
    for name in ("a.pdf", "c.pdf", "e.pdf"):
        (folder / name).write_bytes(page(RED))
        assert (run().pages, run.asked) == (1, 1)
        assert run.out.read_bytes() == run.undisturbed()


def test_documents_that_changed_are_read_again(run, folder):
    (folder / "b.pdf").write_bytes(page(RED))
    tally = run()
    assert (tally.pages, tally.earlier, tally.changed) == (1, 2, (str(folder / "b.pdf"),))
    assert run.out.read_bytes() == run.undisturbed()
    # The same length, at another time.
    status = (folder / "b.pdf").stat()
    (folder / "b.pdf").write_bytes(page(RED.replace("1 0 0", "0 1 0")))
    os.utime(folder / "b.pdf", ns=(status.st_atime_ns, status.st_mtime_ns + 10**9))
    assert run().pages == 1 and run.out.read_bytes() == run.undisturbed()
    assert run().pages == 0


def test_documents_that_are_gone_are_reported_and_dropped_when_wished(run, folder):
    before = run.out.read_bytes()
    (folder / "b.pdf").unlink()
    for _ in range(2):
        tally = run()
        assert tally.missing == (str(folder / "b.pdf"),) and not tally.pruned
        assert run.out.read_bytes() == before and run.asked == 0
    tally = run(prune=True)
    assert tally.pruned and tally.earlier == 2
    assert run.out.read_bytes() == run.undisturbed() != before
    assert run().missing == ()


def test_a_folder_whose_files_went_and_came_back_is_read_no_further(run, folder):
    before = run.out.read_bytes()
    (folder / "b.pdf").rename(folder.parent / "b.pdf")
    run()
    (folder.parent / "b.pdf").rename(folder / "b.pdf")
    assert run().missing == () and run.asked == 0 and run.out.read_bytes() == before


@pytest.fixture
def faults(monkeypatch):
    """Pages of PDFs that fail, by number: an error, or None."""
    faults: dict[int, Exception | None] = {}
    draw = _pdf.PdfReader.page

    def faulty(self, number):
        if faults.get(number):
            raise faults[number]
        return draw(self, number)

    monkeypatch.setattr(_pdf.PdfReader, "page", faulty)
    return faults


def test_failures_from_outside_are_tried_again_by_the_next_run(folder, tmp_path, faults):
    run = Run(folder, tmp_path / "out.jsonl")
    faults[2] = RendererKilledError("The system ended the renderer.")
    assert run().failures == 1
    assert run().failures == 1 and run.asked == 0
    faults.clear()
    tally = run()
    assert (tally.pages, tally.failures, tally.earlier, run.asked) == (1, 0, 4, 1)
    assert run.out.read_bytes() == run.undisturbed()
    assert run().pages == 0


def test_failures_of_the_page_are_tried_again_only_when_wished(folder, tmp_path, faults):
    run = Run(folder, tmp_path / "out.jsonl")
    (folder / "e.pdf").write_bytes(b"")
    faults[1] = faults[3] = DocumentError("The page is damaged.")
    assert run().failures == 3
    faults.clear()
    assert run().pages == 0 and run.asked == 0
    (folder / "e.pdf").write_bytes(b"")
    tally = run(retry_failed=True)
    assert (tally.pages, tally.failures) == (2, 1)
    assert run.out.read_bytes() == run.undisturbed()


@pytest.mark.parametrize("kept", range(7))
def test_a_run_that_is_killed_while_it_tries_again_goes_on(kept, folder, tmp_path, faults):
    run = Run(folder, tmp_path / "out.jsonl")
    faults[1] = faults[3] = RendererKilledError("The system ended the renderer.")
    run()
    faults.clear()
    (folder / "a.pdf").write_bytes(page(RED))
    lines = []

    def end(reading):
        lines.append(reading)
        if len(lines) > kept:
            raise KeyboardInterrupt

    try:
        run(progress=end)
    except KeyboardInterrupt:
        run()
    assert run.out.read_bytes() == run.undisturbed()
    assert not any(failed for _, _, failed in run.lines())


def test_a_file_of_an_earlier_version_goes_on(run, folder):
    """Its documents had no time of change, and nothing was tried again."""
    state = json.loads(Path(f"{run.out}.job").read_bytes())
    del state["retry"]
    state["documents"] = [entry[:3] for entry in state["documents"]]
    Path(f"{run.out}.job").write_text(json.dumps(state))
    before = run.out.read_bytes()
    assert run().pages == 0 and run.out.read_bytes() == before
