"""The figures of a run: one JSON line each, on the disk before the next one is measured."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FILE = "figures.jsonl"


class Records:
    """Appends the figures of one stage.

    Args:
        folder: where ``figures.jsonl`` lies, or will lie.
        stage: the name that stands in each line.
    """

    def __init__(self, folder: Path, stage: str) -> None:
        self.folder = folder
        self.stage = stage

    def write(
        self, name: str, value: Any = None, unit: str = "", seconds: float = 0.0, **more: Any
    ) -> None:
        """Append one line and wait until the disk has it.

        Args:
            name: of the figure.
            value: a number, or several under their names.
            unit: of the value.
            seconds: that the measurement took.
            more: further fields, such as ``error``.
        """
        line = {"stage": self.stage, "name": name, "value": value, "unit": unit}
        line |= {"seconds": round(seconds, 3), "time": time.strftime("%Y-%m-%dT%H:%M:%S"), **more}
        text = json.dumps(line, default=str) + "\n"
        # One write at the end of the file: lines of two processes never mix.
        file = os.open(self.folder / FILE, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(file, text.encode())
            os.fsync(file)
        finally:
            os.close(file)

    @contextmanager
    def figure(self, name: str, unit: str = "") -> Iterator[dict[str, Any]]:
        """Measure one figure inside; whatever is raised there is written, and not raised.

        Yields:
            the line's fields, to be filled: ``value``, and what else is known.
        """
        began = time.perf_counter()
        line: dict[str, Any] = {}
        try:
            yield line
        except Exception as error:
            line |= {"ok": False, "error": described(error)}
            _print_trace(error)
        value = line.pop("value", None)
        self.write(name, value, unit, time.perf_counter() - began, **line)


def read(folder: Path) -> list[dict[str, Any]]:
    """All lines of a run so far; one that was cut off is left out."""
    lines = []
    file = folder / FILE
    for text in file.read_text().splitlines() if file.exists() else []:
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue
    return lines


def brief(line: dict[str, Any]) -> str:
    """One figure for a reader, 240 characters at most."""
    told = [line["stage"], line["name"], f"{line['value']} {line['unit']}".strip()]
    if not line.get("ok", True) or line.get("skipped"):
        told.append(f"NOT OK: {line.get('error')}")
    return " | ".join(" ".join(one.split()) for one in told)[:240]


def described(error: BaseException) -> str:
    """Name and message of an error, 2,000 characters at most."""
    return f"{type(error).__name__}: {error}"[:2000]


def _print_trace(error: Exception) -> None:
    import traceback

    traceback.print_exception(error)
