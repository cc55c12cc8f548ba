"""Which run a file of lines belongs to: recorded beside it, in ``<file>.job``."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from llavakit.errors import ParameterError
from llavakit.runs.atomic import write_atomic
from llavakit.runs.lines import Lines


def claim(
    lines: Lines,
    job: Mapping[str, Any],
    difference: Callable[[str, Any, Any], str | None] = lambda key, known, given: None,
) -> None:
    """Record the job of a file of lines, or check that the lines there belong to it.

    Args:
        lines: the file, open.
        job: all that its lines depend on; JSON values by name.
        difference: says in words how two values of a key differ; None for the default words.

    Raises:
        ParameterError: the lines belong to another job, or to an unknown one.
        SourceFetchError: the job cannot be written.
    """
    path = Path(f"{lines.path}.job")
    given = json.loads(json.dumps(job))
    if lines.empty:
        write_atomic(path, json.dumps(given, indent=1).encode() + b"\n")
        return
    try:
        known = json.loads(path.read_bytes())
    except (OSError, ValueError):
        known = None
    if not isinstance(known, dict):
        raise ParameterError(
            f"{lines.path} exists already, and its job is unknown: {path.name} cannot be read; "
            "name another file, or begin anew with restart (--restart)."
        )
    for key, value in given.items():
        if known.get(key) != value:
            change = difference(key, known.get(key), value)
            change = change or f"{key} was {_short(known.get(key))} and is {_short(value)}"
            raise ParameterError(
                f"{lines.path} belongs to another job ({change}); repeat that one, name another "
                "file, or begin anew with restart (--restart)."
            )


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
