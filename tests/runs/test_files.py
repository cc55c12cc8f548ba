"""What is on the disk when: files that appear whole, lines that are waited for."""

import errno
import os
import signal
import subprocess
import sys

import pytest

from llavakit.errors import ParameterError, SourceFetchError
from llavakit.runs import lines as module
from llavakit.runs.atomic import write_atomic
from llavakit.runs.lines import Lines


def test_a_write_that_fails_leaves_neither_a_file_nor_a_part_of_one(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SourceFetchError, match="No space left"):
        write_atomic(tmp_path / "a.json", b"{}")
    assert list(tmp_path.iterdir()) == []


def test_an_older_file_stays_where_the_new_one_cannot_be_written(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_atomic(path, b"old")
    monkeypatch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError(5, "I/O")))
    with pytest.raises(SourceFetchError):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_lines_are_on_the_disk_after_every_eighth_and_at_the_end(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(module.os, "fsync", lambda descriptor: synced.append(written[0]))
    written = [0]
    with Lines(tmp_path / "a.jsonl", ["n"]) as kept:
        list(kept.read())
        synced.clear()
        for number in range(20):
            written[0] = number + 1
            kept.append({"n": number})
        assert synced == [8, 16]
    assert synced == [8, 16, 20]


def test_a_second_run_is_refused_until_the_first_has_closed_the_file(tmp_path):
    path = tmp_path / "a.jsonl"
    with Lines(path, ["n"]), pytest.raises(ParameterError, match="Another run is writing"):
        Lines(path, ["n"])
    with Lines(path, ["n"]) as kept:
        kept.append({"n": 1})


def test_a_process_that_was_killed_leaves_no_lock(tmp_path):
    path = tmp_path / "a.jsonl"
    code = f"""
import os, signal
from pathlib import Path
from llavakit.runs.lines import Lines
lines = Lines(Path({str(path)!r}), ["n"])
lines.append({{"n": 1}})
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == -signal.SIGKILL
    with Lines(path, ["n"]) as kept:
        assert list(kept.read()) == [{"n": 1}]
