"""What all commands do alike: report errors in one sentence, and wait visibly.

Answers go to stdout; everything else goes to stderr, so that answers can be piped.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Self

import typer
from rich.console import Console
from rich.progress import Progress, ProgressColumn
from rich.status import Status

from llavakit.errors import DataError, LlavaKitError, ParameterError

FAILED = 1
MISUSED = 2
INTERRUPTED = 130
_PATIENCE = 1.0  # seconds without a sign of life


def note(text: str) -> None:
    """Print a remark beside the answer; one that cannot be printed is not worth an error."""
    with suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def usage_error(text: str) -> typer.Exit:
    """Says what was wrong with the arguments; to be raised."""
    note(f"llavakit: {text}")
    return typer.Exit(MISUSED)


def counted(number: int, thing: str) -> str:
    """A number of things in words: "1 page", "2 pages"."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


@contextmanager
def told_errors(debug: bool, *, after_interrupt: str = "") -> Iterator[None]:
    """Turns errors into one sentence on stderr and an exit code; with ``debug`` lets them be.

    Args:
        debug: whether to show where errors happened.
        after_interrupt: what is printed after Ctrl-C.
    """
    if debug:
        logging.basicConfig(level=logging.DEBUG, format="%(levelname)s %(name)s: %(message)s")
    _quiet_libraries()
    try:
        yield
    except KeyboardInterrupt:
        if after_interrupt:
            note(f"llavakit: interrupted; {after_interrupt}")
        raise typer.Exit(INTERRUPTED) from None
    except (typer.Exit, BrokenPipeError):
        raise
    except Exception as error:
        if debug:
            raise
        report = isinstance(error, DataError)  # one line for each fault
        note(f"llavakit: {error if report else sentence(error)}")
        raise typer.Exit(MISUSED if isinstance(error, ParameterError) else FAILED) from None


def sentence(error: Exception) -> str:
    """An error in one line."""
    text = " ".join(str(error).split())
    if isinstance(error, LlavaKitError):
        return text
    return f"{type(error).__name__}: {text} (this is a bug; --debug shows where it happened)"


def _quiet_libraries() -> None:
    # Read when the libraries are imported, which is later. Progress bars of downloads are
    # for people; in a log they are noise.
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


class Waiting:
    """A spinner on stderr while nothing comes: after a second, and on a terminal only."""

    def __init__(self, text: str) -> None:
        self._status: Status | None = None
        self._timer: threading.Timer | None = None
        self._lock = threading.Lock()
        if sys.stderr.isatty():
            self._status = Console(stderr=True).status(text)
            self._timer = threading.Timer(_PATIENCE, self._show)
            self._timer.daemon = True
            self._timer.start()

    def _show(self) -> None:
        with self._lock:
            if self._status is not None:
                self._status.start()

    def over(self) -> None:
        """Something came: take the spinner away; safe to call twice."""
        if self._timer is None:
            return
        self._timer.cancel()
        with self._lock:
            if self._status is not None:
                self._status.stop()
                self._status = None


class Remarks:
    """Remarks on stderr, beside a line of progress where stderr is a terminal.

    Args:
        columns: of the line.
        watched: whether there is such a line at all.
    """

    def __init__(self, *columns: ProgressColumn, watched: bool) -> None:
        self._line: Progress | None = None
        if watched:
            # Results go to stdout as they are; rich would take them for remarks.
            self._line = Progress(
                *columns, console=Console(stderr=True), transient=True, redirect_stdout=False
            )

    def __enter__(self) -> Self:
        if self._line is not None:
            self._line.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._line is not None:
            self._line.stop()

    def _tell(self, text: str) -> None:
        if self._line is None:
            note(text)
        else:
            self._line.console.print(text, markup=False, highlight=False)

    def password(self, name: str) -> str | None:
        """Ask for the password of a document, where there is a terminal to ask on."""
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            return None
        if self._line is not None:
            self._line.stop()
        try:
            typed: str = typer.prompt(
                f"Password of {name} (empty leaves it out)",
                hide_input=True,
                default="",
                show_default=False,
                err=True,
            )
        finally:
            if self._line is not None:
                self._line.start()
        return typed or None
