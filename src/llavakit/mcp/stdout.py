"""Standard output kept for the protocol alone. Imports no SDK, so that it can be done first."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper

_STDOUT, _STDERR = 1, 2


@contextmanager
def claimed_stdout() -> Iterator[TextIOWrapper]:
    """Keep stdout for the protocol; whatever else is written there meanwhile goes to stderr.

    The descriptor itself is replaced, so that this holds for what a library prints from C and for
    what a child process prints, too.

    Yields:
        The stream to write the protocol to.
    """
    sys.stdout.flush()
    own = os.dup(_STDOUT)
    os.dup2(_STDERR, _STDOUT)
    try:
        with TextIOWrapper(
            os.fdopen(own, "wb", closefd=False), encoding="utf-8", newline="\n"
        ) as stream:
            yield stream
    finally:
        os.dup2(own, _STDOUT)
        os.close(own)
