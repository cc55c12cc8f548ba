"""The conversation; what a terminal adds is tested with a pseudo-terminal below."""

import contextlib
import os
import pty
import select
import signal
import subprocess
import sys
import time

import pytest

from llavakit.errors import ContextLengthError
from llavakit.values import SamplingParams


def turns(request):
    return [(message.role, message.text, len(message.images)) for message in request.messages]


def test_turns_follow_each_other(run, fake, picture):
    result = run("chat", picture, stdin="what?\nand now?\n")
    assert (result.exit_code, result.stdout) == (0, "a red circle\na red circle\n")
    assert turns(fake.requests[1]) == [
        ("user", "what?", 1),
        ("assistant", "a red circle", 0),
        ("user", "and now?", 0),
    ]
    assert fake.requests[0].params == SamplingParams(temperature=0.2)


@pytest.mark.parametrize("end", ["", "\nnever asked\n", "/exit\nnever asked\n"])
def test_an_empty_line_end_of_input_and_exit_leave(end, run, fake):
    result = run("chat", stdin="hello\n" + end)
    assert result.exit_code == 0
    assert len(fake.requests) == 1


def test_a_picture_can_be_shown_later(run, fake, picture, other):
    run("chat", stdin=f"hi\n/image {picture}\n/image '{other}'\nwhat?\nmore?\n")
    assert turns(fake.requests[1])[-1] == ("user", "what?", 2)
    assert turns(fake.requests[2])[-1] == ("user", "more?", 0)


def test_a_page_can_be_shown(run, fake, pdf):
    run("chat", stdin=f"/image {pdf}#page=2\nwhat?\n")
    assert turns(fake.requests[0]) == [("user", "what?", 1)]


@pytest.mark.parametrize("name", ["/nowhere.png", "{broken}", "{pdf}#page=9", ""])
def test_a_bad_picture_is_one_sentence_and_the_chat_goes_on(name, run, fake, pdf, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"nothing")
    result = run("chat", stdin=f"/image {name.format(broken=broken, pdf=pdf)}\nwhat?\n")
    assert result.exit_code == 0
    assert len(result.stderr.strip().splitlines()) == 1
    assert turns(fake.requests[0]) == [("user", "what?", 0)]


def test_a_bad_picture_to_begin_with_ends_the_program(run, fake):
    result = run("chat", "/nowhere.png", stdin="what?\n")
    assert result.exit_code == 1 and "/nowhere.png" in result.stderr
    assert fake.requests == []


def test_clear_forgets_all_but_the_system_message(run, fake, picture):
    run("chat", "--system", "Be brief.", stdin=f"hi\n/image {picture}\n/clear\nhello\n")
    assert turns(fake.requests[1]) == [("system", "Be brief.", 0), ("user", "hello", 0)]


def test_help_and_unknown_commands(run, fake):
    result = run("chat", stdin="/help\n/what\n")
    assert "/image PATH" in result.stderr and "no command /what" in result.stderr
    assert fake.requests == []


def test_a_question_that_fails_is_forgotten_but_its_picture_is_not(run, fake, picture):
    answers = iter([ContextLengthError("Too long."), "fine"])
    fake._answer = lambda request: next(answers)
    result = run("chat", picture, stdin="long\nshort\n")
    assert "Too long. /clear begins anew." in result.stderr
    assert turns(fake.requests[1]) == [("user", "short", 1)]
    assert result.stdout == "fine\n"


# A real terminal

SCRIPT = """
import itertools, sys, time
import llavakit
from llavakit.streams import AnswerStream, Channel
from llavakit.testing import FakeBackend
from llavakit.values import Chunk, Usage

class Slow(FakeBackend):
    def submit(self, request):
        said = [m.text for m in request.messages]
        if "long" not in said[-1]:
            self._answer = lambda request: "|".join(said)
            return super().submit(request)
        channel = Channel()
        channel.put(Chunk("once upon "))
        return AnswerStream(channel, self._count_cancel)

fake = Slow()
llavakit.load = lambda *a, **k: fake
from llavakit.cli import main
sys.argv = ["llavakit", "chat"]
main()
"""


class Terminal:
    """A program on a pseudo-terminal."""

    def __init__(self):
        self._seen = b""
        self._master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            env=os.environ | {"TERM": "xterm"},
            preexec_fn=_own_terminal,
        )
        os.close(slave)

    def type(self, text):
        os.write(self._master, text.encode())

    def interrupt(self, text):
        """Presses Ctrl-C until a text comes: just before Python reads a line, one is lost."""
        for _ in range(5):
            self.type("\x03")
            if self._comes(text, seconds=4):
                return
        self.expect(text)

    def leave(self):
        """Presses Ctrl-C until the program has ended; its exit code."""
        for _ in range(5):
            self.type("\x03")
            with contextlib.suppress(subprocess.TimeoutExpired):
                return self.process.wait(4)
        return self.process.wait(4)

    def expect(self, text, seconds=20):
        """Waits for a text in what came since the last one."""
        assert self._comes(text, seconds), f"{text!r} did not come; there is {self._seen!r}"

    def _comes(self, text, seconds):
        end = time.monotonic() + seconds
        while text.encode() not in self._seen:
            ready, _, _ = select.select([self._master], [], [], max(0, end - time.monotonic()))
            if not ready:
                return False
            self._seen += os.read(self._master, 1024)
        self._seen = self._seen.partition(text.encode())[2]
        return True

    def close(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)
        os.close(self._master)


def _own_terminal():
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    # A test run in the background ignores SIGINT, and hands that down.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def terminal():
    terminal = Terminal()
    yield terminal
    terminal.close()


def test_ctrl_c_stops_the_answer_and_keeps_what_was_said(terminal):
    terminal.expect("> ")
    terminal.type("a long story\n")
    terminal.expect("once upon ")
    terminal.type("\x03")
    terminal.expect("[stopped]")
    terminal.expect("> ")
    terminal.type("what did you say?\n")
    terminal.expect("a long story|once upon|what did you say?")
    terminal.expect("> ")
    terminal.type("\n")
    assert terminal.process.wait(10) == 0


def test_ctrl_c_at_the_prompt_hints_first_and_leaves_then(terminal):
    terminal.expect("> ")
    terminal.interrupt("once more")
    terminal.expect("> ")
    terminal.type("hi\n")
    terminal.expect("> ")
    terminal.interrupt("once more")
    terminal.expect("> ")
    assert terminal.leave() == 0
