"""Runs into JSON Lines: killed anywhere, they go on to the same bytes."""

import itertools
import json
import random
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from examples.demo_model.world.pages import clean_page, random_page, write_pdf
from llavakit.cli.app import app
from llavakit.documents import Job, PageStore, Task, View, open_pages, run_job
from llavakit.errors import EngineClosedError, ParameterError, SourceFetchError
from llavakit.images import open_picture
from llavakit.testing import FakeBackend
from llavakit.values import Usage
from tests.documents.hostile import RED, encrypted, page, tree
from tests.documents.test_pages import COLOURS, THREE, tiff

pytestmark = pytest.mark.timeout(120)

KEYS = ["source", "page", "size", "sha256", "task", "model", "text", "data"]
KEYS += ["finish_reason", "usage", "error"]


def answer(request):
    """A text that depends on the image alone, with signs that are hard on lines."""
    return f"{open_picture(request.messages[-1].images[0].source).digest[:8]}\n\u2028\x85äö"


@pytest.fixture
def backend():
    return FakeBackend(answer)


@pytest.fixture
def job(tmp_path):
    """Eleven lines: pages, failures of pages and of whole documents."""
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.pdf").write_bytes(THREE)
    (folder / "b.pdf").write_bytes(encrypted())
    (folder / "c.tiff").write_bytes(tiff(*COLOURS[:2]))
    (folder / "d.pdf").write_bytes(tree("3 0 R 99 0 R 3 0 R", 3))
    (folder / "e.pdf").write_bytes(b"")
    (folder / "f.pdf").write_bytes(page(RED))
    return Job((str(folder),), Task("transcribe"), "fake", view=View(page_seconds=None))


@pytest.fixture
def whole(job, backend, tmp_path):
    """The bytes of an undisturbed run."""
    tally = run_job(job, backend, tmp_path / "whole.jsonl")
    data = (tmp_path / "whole.jsonl").read_bytes()
    assert tally.pages + tally.failures == data.count(b"\n") and tally.earlier == 0
    return data


def test_a_line_for_every_page_and_failure(whole):
    lines = [json.loads(line) for line in whole.decode().splitlines()]
    assert all(list(line) == KEYS for line in lines)
    assert [(Path(line["source"]).name, line["page"]) for line in lines] == [
        ("a.pdf", 1), ("a.pdf", 2), ("a.pdf", 3), ("b.pdf", None), ("c.tiff", 1), ("c.tiff", 2),
        ("d.pdf", 1), ("d.pdf", 2), ("d.pdf", 3), ("e.pdf", None), ("f.pdf", 1),
    ]  # fmt: skip
    assert (
        lines[3]["error"]["type"] == "PasswordError" and "encrypted" in lines[3]["error"]["message"]
    )
    assert lines[0]["error"] is None and lines[0]["text"].endswith("\u2028\x85äö")
    assert lines[0]["usage"].keys() == {"prompt_tokens", "completion_tokens", "image_tokens"}


def test_a_run_that_was_killed_at_any_byte_goes_on_to_the_same_file(job, backend, whole, tmp_path):
    ends = [at for at, byte in enumerate(whole) if byte == 10]
    cuts = {0, 1, len(whole)} | {end + more for end in ends for more in (-7, 0, 1, 2)}
    out = tmp_path / "out.jsonl"
    (tmp_path / "out.jsonl.job").write_bytes((tmp_path / "whole.jsonl.job").read_bytes())
    for cut in sorted(cut for cut in cuts if cut <= len(whole)):
        backend.requests.clear()
        out.write_bytes(whole[:cut])
        tally = run_job(job, backend, out)
        assert out.read_bytes() == whole
        there = whole[:cut].count(b"\n")
        assert (tally.earlier, tally.pages + tally.failures) == (there, len(ends) - there)
        assert len(backend.requests) == tally.pages


@pytest.mark.parametrize(
    "rubbish", [bytes(5000), b"{}\n", b'{"source": 1\n', b"\xff\xfe\n[]\n", b"null\n"]
)
def test_rubbish_behind_the_last_good_line_is_cut_off(job, backend, whole, tmp_path, rubbish):
    cut = whole.index(b"\n", 900) + 1
    (tmp_path / "whole.jsonl").write_bytes(whole[:cut] + rubbish)
    run_job(job, backend, tmp_path / "whole.jsonl")
    assert (tmp_path / "whole.jsonl").read_bytes() == whole


def test_a_finished_run_costs_nothing_and_changes_nothing(job, backend, whole, tmp_path):
    backend.requests.clear()
    assert run_job(job, backend, tmp_path / "whole.jsonl").earlier == 11
    assert backend.requests == [] and (tmp_path / "whole.jsonl").read_bytes() == whole


def test_an_engine_that_dies_leaves_what_was_read_and_the_next_run_goes_on(job, whole, tmp_path):
    turns = itertools.count()

    def dying(request):
        return answer(request) if next(turns) < 4 else EngineClosedError("gone")

    out = tmp_path / "out.jsonl"
    with pytest.raises(EngineClosedError):
        run_job(job, FakeBackend(dying), out, window=2)
    assert whole.startswith(out.read_bytes()) and out.read_bytes().count(b"\n") == 5
    run_job(job, FakeBackend(answer), out)
    assert out.read_bytes() == whole


def test_what_the_engine_had_cached_is_not_in_the_lines(job, whole, tmp_path):
    class Caching(FakeBackend):
        def _tell(self, request, text, channel):
            from llavakit.values import Completion

            usage = Usage(self._count(request), 2, cached_tokens=len(self.requests))
            super()._tell(request, Completion(text, usage=usage), channel)

    backend = Caching(answer)
    for name in ("one", "two"):
        run_job(job, backend, tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


CHANGES = {
    "task": lambda job: replace(job, task=Task("describe")),
    "prompt": lambda job: replace(job, task=Task("transcribe", "Read!")),
    "max_tokens": lambda job: replace(job, task=Task("transcribe", max_tokens=3)),
    "model": lambda job: replace(job, model="other"),
    "dpi": lambda job: replace(job, view=View(dpi=72, page_seconds=None)),
    "pages": lambda job: replace(job, pages="1-"),
    "settings": lambda job: replace(job, settings={"conv_mode": "v1"}),
}


@pytest.mark.parametrize("word, change", CHANGES.items(), ids=CHANGES)
def test_another_job_is_refused_and_the_file_left_alone(
    job, backend, whole, tmp_path, word, change
):
    with pytest.raises(ParameterError, match=f"belongs to another job .*{word}"):
        run_job(change(job), backend, tmp_path / "whole.jsonl")
    assert (tmp_path / "whole.jsonl").read_bytes() == whole
    assert run_job(change(job), backend, tmp_path / "whole.jsonl", restart=True).earlier == 0


@pytest.mark.parametrize(
    "content", ['{"source": "x", "page": 1, "error": null}\n', "Dear diary,\n", "torn"]
)
def test_a_file_of_somebody_else_is_left_alone(job, backend, tmp_path, content):
    out = tmp_path / "mine.jsonl"
    out.write_text(content)
    with pytest.raises(ParameterError, match="its job is unknown"):
        run_job(job, backend, out)
    assert out.read_text() == content


def test_lines_of_documents_that_were_never_of_the_job_are_refused(job, backend, whole, tmp_path):
    foreign = whole.splitlines(keepends=True)[0].replace(b"a.pdf", b"z.pdf")
    (tmp_path / "whole.jsonl").write_bytes(whole + foreign)
    with pytest.raises(ParameterError, match=r"Line 12 .* is not of this job .*z\.pdf"):
        run_job(job, backend, tmp_path / "whole.jsonl")
    other = tmp_path / "other.pdf"
    other.write_bytes(THREE)
    (tmp_path / "whole.jsonl").write_bytes(whole)
    with pytest.raises(ParameterError, match="none of these documents"):
        run_job(replace(job, sources=(str(other),)), backend, tmp_path / "whole.jsonl")


def test_a_document_that_is_named_twice_with_different_pages_is_refused(job, backend, tmp_path):
    name = job.sources[0] + "/a.pdf"
    with pytest.raises(ParameterError, match="named twice"):
        run_job(
            replace(job, sources=(f"{name}#pages=1", f"{name}#pages=3")), backend, tmp_path / "o"
        )


def test_one_run_writes_a_file_at_a_time(job, backend, tmp_path):
    def meddle(reading):
        with pytest.raises(ParameterError, match="Another run is writing"):
            run_job(job, backend, tmp_path / "out.jsonl")
        seen.append(reading)

    seen = []
    run_job(job, backend, tmp_path / "out.jsonl", progress=meddle)
    assert len(seen) == 11


def test_a_file_that_cannot_be_written_is_our_error(job, backend, tmp_path):
    with pytest.raises(SourceFetchError, match="cannot be written"):
        run_job(job, backend, tmp_path / "nowhere" / "out.jsonl")


def test_the_store_keeps_the_pictures_that_the_lines_name(job, backend, tmp_path):
    store = PageStore(tmp_path / "store")
    run_job(job, backend, tmp_path / "out.jsonl", store=store)
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    digests = {line["sha256"] for line in lines if line["sha256"]}
    assert set(store) == digests
    assert store.get(lines[0]["sha256"]) == next(open_pages(THREE)).picture


def test_given_up_documents_are_given_up_at_the_same_page(backend, tmp_path):
    (tmp_path / "bad.pdf").write_bytes(tree("3 0 R", 100_000))
    (tmp_path / "good.pdf").write_bytes(page(RED))
    job = Job((str(tmp_path / "bad.pdf"), str(tmp_path / "good.pdf")), Task("describe"), "fake",
              view=View(page_seconds=None))  # fmt: skip
    out = tmp_path / "out.jsonl"
    run_job(job, backend, out)
    whole = out.read_bytes()
    lines = whole.splitlines(keepends=True)
    assert len(lines) == 103
    for kept in (1, 50, 100, 101, 102):
        out.write_bytes(b"".join(lines[:kept]))
        run_job(job, backend, out)
        assert out.read_bytes() == whole


@pytest.mark.timeout(280)
def test_a_killed_program_goes_on_to_what_an_undisturbed_run_writes(tmp_path, demo_backend):
    rng = random.Random(5)
    pages = [clean_page(random_page(rng)) for _ in range(24)]
    write_pdf(pages, tmp_path / "pages.pdf")
    (tmp_path / "broken.pdf").write_bytes(b"%PDF-1.7\n")
    sources = (str(tmp_path / "broken.pdf"), str(tmp_path / "pages.pdf"))
    out = tmp_path / "out.jsonl"
    read = ["read", *sources, "--out", str(out), "--window", "3"]
    command = [sys.executable, "-c", "from llavakit.cli import main; main()", *read]

    killed = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while not (out.exists() and out.read_bytes().count(b"\n") >= 6):
        assert killed.poll() is None, killed.communicate()
        time.sleep(0.01)
    killed.kill()
    killed.communicate()
    left = out.read_bytes()
    assert 6 <= left.count(b"\n") < 25
    again = CliRunner().invoke(app, read)
    assert (again.exit_code, again.stdout) == (0, ""), again.stderr

    # The undisturbed run has another window, and an engine with a past.
    run_job(Job(sources, Task("transcribe"), "demo"), demo_backend, tmp_path / "whole.jsonl")
    whole = (tmp_path / "whole.jsonl").read_bytes()
    assert out.read_bytes() == whole and whole.startswith(left[: left.rindex(b"\n") + 1])
    lines = [json.loads(line) for line in whole.splitlines()]
    assert [line["page"] for line in lines] == [None, *range(1, 25)]
    right = sum(line["text"] == one.text() for line, one in zip(lines[1:], pages, strict=True))
    assert right >= 20, [line["text"] for line in lines[1:]]
