"""The standard output, whose failures are one sentence whatever command wrote to it."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import Any

from llavakit.errors import LlavaKitError


class OutputError(LlavaKitError):
    """The standard output cannot be written: its disk is full, or it was closed."""


class _Output(io.FileIO):
    """The standard output as bytes; its errors have a class of their own."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:  # a reader such as head has enough, and needs no word about it
            self._silence()
            raise
        except OSError as error:
            self._silence()
            raise OutputError(
                f"The standard output cannot be written ({error.strerror}); what came of it is "
                "not complete."
            ) from error

    def _silence(self) -> None:
        """What is still buffered goes nowhere, or it would fail again when the process ends."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.fileno())
        os.close(nowhere)


@contextlib.contextmanager
def checked_output() -> Iterator[None]:
    """Let errors of the standard output be errors of ours, and all of it be written at the end.

    Raises:
        OutputError: it cannot be written.
    """
    before = sys.stdout
    try:
        number = before.fileno()
    except (AttributeError, OSError, ValueError):  # closed, or not a file
        yield
        return
    before.flush()
    raw = _Output(number, "w", closefd=False)
    sys.stdout = io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=before.encoding,
        errors=before.errors,
        line_buffering=before.isatty(),
    )
    try:
        yield
    finally:
        try:
            with contextlib.suppress(BrokenPipeError):
                sys.stdout.flush()
        finally:
            sys.stdout.detach()
            sys.stdout = before
