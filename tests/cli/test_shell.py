"""What a shell sees: help of every command, completion, progress in a pipe and in a terminal."""

import os
import pty
import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

from llavakit.cli.app import app

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no pty")


def commands(command=None, words=()):
    """Every command and group with the words that name it."""
    command = command or typer.main.get_command(app)
    yield words, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, (*words, name))


ALL = dict(commands())
assert len(ALL) >= 13


@pytest.mark.parametrize("words", ALL, ids=" ".join)
def test_help_is_whole_and_fits_a_terminal(words):
    result = CliRunner(env={"COLUMNS": "80", "TERM": "dumb"}).invoke(app, [*words, "--help"])
    assert result.exit_code == 0 and result.stderr == ""
    assert "Usage: " in result.stdout and "\x1b" not in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80
    command = ALL[words]
    assert command.help or words == ()
    for parameter in command.params:
        assert getattr(parameter, "help", None) or parameter.name == "help", parameter.name


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """`llavakit` by its name, as a shell finds it."""
    path = tmp_path_factory.mktemp("bin") / "llavakit"
    path.write_text(f"#!{sys.executable}\nfrom llavakit.cli import main\nmain()\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("shell", "words", "expected"),
    [
        ("bash", "llavakit se", "serve\n"),
        ("bash", "llavakit ask --temp", "--temperature\n"),
        ("bash", "llavakit data ", "check\n"),
        ("zsh", "llavakit expo", '"export"'),
        ("fish", "llavakit expo", "export\t"),
    ],
)
def test_completion_gives_commands_and_options(program, shell, words, expected):
    line = words.rstrip("\n")
    done = subprocess.run(
        [program],
        capture_output=True,
        text=True,
        timeout=120,
        env={
            **os.environ,
            "_LLAVAKIT_COMPLETE": f"complete_{shell}",
            "COMP_WORDS": line,
            "COMP_CWORD": str(len(line.split(" ")) - 1),
            "_TYPER_COMPLETE_ARGS": line,
            "_TYPER_COMPLETE_FISH_ACTION": "get-args",
        },
    )
    assert done.returncode == 0 and done.stderr == ""
    assert expected in done.stdout and "--" not in done.stdout.replace("--temperature", "")


READING = """
import sys, llavakit
from llavakit.testing import FakeBackend
llavakit.load = lambda *names, **settings: FakeBackend(["Dear reader"])
from llavakit.cli import main
main()
"""


def reading(*images, **streams):
    command = [sys.executable, "-c", READING, "read", *map(str, images)]
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "80"}
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=environment, **streams
    )


def drained(descriptor):
    found = b""
    while True:
        try:
            piece = os.read(descriptor, 4096)
        except OSError:  # how a terminal ends
            return found
        if not piece:
            return found
        found += piece


def test_in_a_pipe_there_is_no_progress(picture, other):
    process = reading(picture, other, stderr=subprocess.PIPE)
    out, said = process.communicate(timeout=120)
    assert process.returncode == 0 and out.count(b"\n") == 2
    assert said == b""


def test_progress_in_a_terminal_is_taken_away_and_the_cursor_comes_back(picture, other):
    master, slave = pty.openpty()
    process = reading(picture, other, stderr=slave)
    os.close(slave)
    said = drained(master)
    out = process.stdout.read()
    process.stdout.close()
    os.close(master)
    assert process.wait(120) == 0 and out.count(b"\n") == 2 and b"\x1b" not in out
    assert said.count(b"\x1b[?25l") == said.count(b"\x1b[?25h") >= 1  # the cursor
    assert said.endswith(b"\x1b[2K2 pages read.\r\n")
