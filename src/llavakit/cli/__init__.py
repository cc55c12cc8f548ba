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

    app()
