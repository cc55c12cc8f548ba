"""A standard output that cannot be written, and files that are no files."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from llavakit.cli.chat import _talk
from tests.cli.conftest import png_bytes

FULL = "/dev/full"
pytestmark = pytest.mark.skipif(not Path(FULL).exists(), reason="there is no /dev/full")


def command(*words, **settings):
    program = [sys.executable, "-c", "from llavakit.cli import main; main()", *words]
    return subprocess.run(program, stderr=subprocess.PIPE, text=True, timeout=120, **settings)


@pytest.mark.parametrize(
    "words", [["models"], ["models", "--json"], ["--help"], ["serve", "--help"], ["--version"]]
)
def test_a_full_disk_is_one_sentence(words):
    with Path(FULL).open("w") as full:
        run = command(*words, stdout=full)
    assert run.returncode == 1
    (line,) = run.stderr.strip().splitlines()
    assert line.startswith("llavakit: The standard output cannot be written (No space left")


@pytest.mark.parametrize("words", [["models", "--json"], ["models"], ["ask", "--help"]])
def test_a_reader_that_has_enough_is_no_error_to_report(words):
    read, write = os.pipe()
    os.close(read)
    run = command(*words, stdout=write)
    os.close(write)
    assert run.stderr == ""


def test_what_is_written_arrives_whole():
    run = command("models", "--json", stdout=subprocess.PIPE)
    assert run.returncode == 0 and run.stdout.rstrip().endswith("]")


@pytest.mark.parametrize("name", ["pipe.png", "pipe.pdf", "pipe"])
def test_a_pipe_is_refused_unopened(run, tmp_path, name):
    from llavakit.cli.pictures import to_images
    from llavakit.errors import SourceNotAllowedError
    from llavakit.images import open_picture

    pipe = tmp_path / name
    os.mkfifo(pipe)
    with pytest.raises(SourceNotAllowedError, match="pipe"):
        for image in to_images([str(pipe)]):
            open_picture(image.source)
    result = run("chat", stdin=f"/image {pipe}\nHello\n")
    assert result.exit_code == 0 and "pipe or socket" in result.output
    assert "a red circle" in result.output


def test_ctrl_c_while_an_image_is_opened_keeps_the_conversation(monkeypatch, capsys, tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(png_bytes())
    asked = []

    class Session:
        def show(self, names):
            raise KeyboardInterrupt

        def ask(self, question):
            asked.append(question)

    lines = iter([f"/image {path}\n", "Still there?\n", ""])
    monkeypatch.setattr(
        sys,
        "stdin",
        type("Lines", (), {"isatty": lambda self: False, "readline": lambda self: next(lines)})(),
    )
    _talk(Session())
    assert asked == ["Still there?"]
    assert "conversation is as it was" in capsys.readouterr().err
