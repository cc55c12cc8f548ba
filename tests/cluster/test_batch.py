"""Documents into Parquet: shards, runs that go on, and (slow) a pool of actors on Ray."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

import llavakit
from llavakit.cluster.batch import ShardReader
from llavakit.cluster.shards import ShardFolder, shards_of
from llavakit.documents import Document, Job, Task, View, run_job
from llavakit.documents.job import fingerprint_of
from llavakit.documents.jobs import listed
from llavakit.errors import ParameterError
from llavakit.sources import DEFAULT_POLICY
from llavakit.testing import FakeBackend
from tests.documents.test_archives import locked_pdf
from tests.serving.conftest import draw, eventually

DAMAGED = 17
COLOURS = ("red", "green", "blue", "yellow")


@pytest.fixture
def folder(tmp_path):
    """Sixty images, one of them damaged."""
    made = tmp_path / "in"
    made.mkdir()
    for number in range(60):
        draw(COLOURS[number % 4], size=100 + number).save(made / f"{number:02}.png")
    damaged = made / f"{DAMAGED}.png"
    damaged.write_bytes(damaged.read_bytes()[:60])
    return made


@pytest.fixture
def job(folder):
    return Job((str(folder),), Task("describe"), "fake", view=View(page_seconds=None))


@pytest.fixture
def reader(job, tmp_path, monkeypatch):
    """The actor as Ray makes it, in this process and with a scripted model."""
    monkeypatch.setattr(llavakit, "load", lambda model, **settings: FakeBackend(["a circle"]))
    out = tmp_path / "out"
    out.mkdir()
    return ShardReader(str(Path.cwd()), job, {}, str(out), 4, None, DEFAULT_POLICY)


@given(st.integers(0, 200), st.integers(1, 50))
def test_shards_are_the_documents_in_order_none_twice_and_always_the_same(count, size):
    documents = [Document(f"{number}.png") for number in range(count)]

    shards = shards_of(documents, size)

    assert [one for shard in shards for one in shard.documents] == documents
    assert all(len(shard.documents) == size for shard in shards[:-1])
    assert len({shard.file for shard in shards}) == len(shards)
    assert shards == shards_of(documents, size)


def test_shards_of_nothing_are_refused():
    with pytest.raises(ParameterError, match="at least 1"):
        shards_of([], 0)


def test_rows_are_the_lines_that_are_written_without_ray(job, reader, tmp_path):
    run_job(job, FakeBackend(["a circle"]), tmp_path / "lines.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "lines.jsonl").read_bytes().splitlines()]

    for shard in shards_of(listed(job, DEFAULT_POLICY), 7):
        reader.read(shard)
    rows = pq.read_table(tmp_path / "out").to_pylist()

    assert [row.pop("text_layer") for row in rows] == [None] * 60
    assert rows == lines


def test_a_damaged_file_is_a_row_with_an_error_and_harms_no_other(job, reader, tmp_path):
    shard = shards_of(listed(job, DEFAULT_POLICY), 60)[0]

    done = reader.read(shard)

    rows = pq.read_table(tmp_path / "out").to_pylist()
    failed = [row for row in rows if row["error"] is not None]
    assert [Path(row["source"]).name for row in failed] == [f"{DAMAGED}.png"]
    assert failed[0]["text"] is None and failed[0]["error"]["type"] == "DocumentError"
    assert (done.pages, len(done.errors)) == (59, 1)


def test_extracted_data_is_json_text(folder, tmp_path, monkeypatch):
    schema = {"type": "object", "properties": {"title": {"type": "string"}}}
    job = Job((str(folder / "00.png"),), Task("extract", schema=schema), "fake")
    backend = FakeBackend(['{"title": "Größe"}'])
    monkeypatch.setattr(llavakit, "load", lambda model, **settings: backend)
    reader = ShardReader(str(Path.cwd()), job, {}, str(tmp_path), 4, None, DEFAULT_POLICY)

    reader.read(shards_of(listed(job, DEFAULT_POLICY))[0])

    row = pq.read_table(tmp_path / "part-000000.parquet").to_pylist()[0]
    assert json.loads(row["data"]) == {"title": "Größe"}
    assert row["text"] is None


def test_names_that_are_no_unicode_have_a_row(folder, tmp_path, monkeypatch):
    name = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png")
    draw().save(name, "PNG")
    monkeypatch.setattr(llavakit, "load", lambda model, **settings: FakeBackend())
    job = Job((name,), Task("describe"), "fake")
    reader = ShardReader(str(Path.cwd()), job, {}, str(tmp_path), 4, None, DEFAULT_POLICY)

    reader.read(shards_of(listed(job, DEFAULT_POLICY))[0])

    row = pq.read_table(tmp_path / "part-000000.parquet").to_pylist()[0]
    assert (row["error"], row["text"]) == (None, "ok")
    assert row["source"].endswith("\\udcff.png")


def claim(out, job, shards=3, restart=False):
    parts = ShardFolder(out)
    documents = listed(job, DEFAULT_POLICY)
    with parts.opened(restart) as lines:
        parts.claim(lines, fingerprint_of(job, documents, FakeBackend()), shards)
    return parts


@pytest.mark.parametrize("password", ["secret", {"locked.pdf": "secret"}, None])
def test_encrypted_documents_open_with_their_password(tmp_path, monkeypatch, password):
    monkeypatch.setattr(llavakit, "load", lambda model, **settings: FakeBackend(["a circle"]))
    path = tmp_path / "locked.pdf"
    path.write_bytes(locked_pdf())
    job = Job((str(path),), Task("describe"), "fake", view=View(page_seconds=None))
    known = (str(Path.cwd()), job, {}, str(tmp_path), 4, None, DEFAULT_POLICY, password)
    done = ShardReader(*known).read(shards_of(listed(job, DEFAULT_POLICY))[0])
    assert (done.pages, len(done.errors)) == ((1, 0) if password else (0, 1))


def test_only_whole_files_count_as_read(job, reader, tmp_path):
    shards = shards_of(listed(job, DEFAULT_POLICY), 20)
    for shard in shards[:2]:
        reader.read(shard)
    part = tmp_path / "out" / shards[1].file
    part.write_bytes(part.read_bytes()[:-9])
    left = tmp_path / "out" / ".part-000002.parquet.0123.tmp"
    left.write_bytes(b"of a killed actor")
    (tmp_path / "out" / "_run.jsonl").write_text('{"shards": 3}\n')
    documents = listed(job, DEFAULT_POLICY)
    job_file = tmp_path / "out" / "_run.jsonl.job"
    job_file.write_text(json.dumps(fingerprint_of(job, documents, FakeBackend())))

    parts = claim(tmp_path / "out", job)

    assert [parts.rows(shard) for shard in shards] == [20, None, None]
    assert not left.exists()


def test_a_folder_belongs_to_one_job(job, folder, tmp_path):
    out = tmp_path / "out"
    claim(out, job)
    other = Job(job.sources, Task("describe", prompt="What?"), "fake", view=job.view)

    with pytest.raises(ParameterError, match=r"another job.*prompt"):
        claim(out, other)
    draw().save(folder / "60.png")
    with pytest.raises(ParameterError, match=r"60\.png is new"):
        claim(out, job)
    claim(out, job, restart=True)


def test_parts_of_nobody_are_not_taken_for_ones_own(job, reader, tmp_path):
    shard = shards_of(listed(job, DEFAULT_POLICY), 60)[0]
    reader.read(shard)

    with pytest.raises(ParameterError, match="nothing is known of"):
        claim(tmp_path / "out", job)
    parts = claim(tmp_path / "out", job, restart=True)
    assert parts.rows(shard) is None


def test_two_runs_do_not_write_one_folder(job, tmp_path):
    with (
        ShardFolder(tmp_path / "out").opened(False),
        pytest.raises(ParameterError, match="Another run"),
    ):
        ShardFolder(tmp_path / "out").opened(False)


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "out").write_text("")

    with pytest.raises(ParameterError, match="is a file"):
        ShardFolder(tmp_path / "out").opened(False)


class Run:
    """`llavakit read --ray` in a process of its own."""

    def __init__(self, folder, out, *arguments):
        command = ["read", str(folder), "--ray", "--actors", "2", "--shard", "3"]
        command += ["--out", str(out), "--task", "describe", "--max-tokens", "40", *arguments]
        self.process = subprocess.Popen(
            [sys.executable, "-c", "from llavakit.cli import main; main()", *command],
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        self.tree = []

    def actors(self):
        self.tree = psutil.Process(self.process.pid).children(recursive=True)
        return [one for one in self.tree if "ShardReader" in _title(one)]

    def end(self):
        """Waits for the end, of all its processes too; what it said."""
        said = self.process.communicate(timeout=200)[1]
        _, left = psutil.wait_procs(self.tree, timeout=60)
        assert not left
        return said

    def kill(self):
        """Kills the program, and then the agents with which Ray outlives it for minutes."""
        self.actors()
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate(timeout=60)
        _, left = psutil.wait_procs(self.tree, timeout=5)
        for one in left:
            one.kill()
        psutil.wait_procs(left, timeout=20)


def _title(process):
    try:
        return process.cmdline()[0]
    except (psutil.Error, IndexError):
        return ""


def parts_of(out):
    return sorted(Path(out).glob("part-*.parquet"))


@pytest.mark.slow
@pytest.mark.enable_socket
@pytest.mark.timeout(600)
def test_sixty_files_killed_half_way_and_run_again_are_sixty_rows(folder, tmp_path, demo_dir):
    out = tmp_path / "out"
    first = Run(folder, out)
    eventually(lambda: parts_of(out), lambda found: len(found) >= 5, timeout=200)
    first.kill()
    half = parts_of(out)
    assert 5 <= len(half) < 20  # it was killed in the middle
    when = {part: part.stat().st_mtime_ns for part in half}

    second = Run(folder, out)
    eventually(second.actors, lambda found: len(found) >= 1, timeout=200)
    said = second.end()

    assert second.process.returncode == 0, said
    assert {part: part.stat().st_mtime_ns for part in half} == when  # nothing was read twice
    rows = pq.read_table(out).to_pylist()
    names = [Path(row["source"]).name for row in rows]
    assert names == [f"{number:02}.png" for number in range(60)]
    assert [row["source"] for row in rows if row["error"]] == [str(folder / f"{DAMAGED}.png")]
    right = [COLOURS[number % 4] in (row["text"] or "") for number, row in enumerate(rows)]
    assert sum(right) >= 50
    assert "lines were there before" in said
    again = Run(folder, out)
    assert "0 pages read, 60 lines were there before" in again.end()


@pytest.mark.slow
@pytest.mark.enable_socket
@pytest.mark.timeout(600)
def test_an_actor_that_is_killed_is_replaced(folder, tmp_path, demo_dir):
    out = tmp_path / "out"
    run = Run(folder, out)
    eventually(lambda: parts_of(out), lambda found: len(found) >= 2, timeout=200)
    run.actors()[0].send_signal(signal.SIGKILL)
    said = run.end()

    assert run.process.returncode == 0, said
    names = [Path(row["source"]).name for row in pq.read_table(out).to_pylist()]
    assert names == [f"{number:02}.png" for number in range(60)]
