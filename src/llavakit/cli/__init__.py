"""The command line: ``llavakit ask``, ``chat``, ``read``, ``serve``, ``web``, ``train``, ..."""

from __future__ import annotations

import sys
from importlib.util import find_spec

__all__ = ["main"]


def main() -> None:
    """Runs the command line, and exits."""
    missing = [name for name in ("typer", "rich") if find_spec(name) is None]
    if missing:
        print(
            f'The command line needs {missing[0]}; run: pip install "llavakit[cli]"',
            file=sys.stderr,
        )
        raise SystemExit(2)
    from llavakit.cli.app import app
    from llavakit.cli.output import OutputError, checked_output
    from llavakit.cli.terminal import FAILED, note

    try:
        with checked_output():
            app()
    except OutputError as error:
        note(f"llavakit: {error}")
        raise SystemExit(FAILED) from None
