"""Files of training records, with the line on which each record begins.

Read are the original's JSON lists, JSON Lines, directories that Hugging Face ``datasets`` saved
(``save_to_disk``), Parquet files, and data sets in memory.
"""

from __future__ import annotations

import importlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llavakit.errors import InputError, MissingDependencyError

_BLANK = " \t\r\n"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a record stands.

    Attributes:
        record: its number, from 1.
        line: the line on which it begins, from 1; None in files without lines.
        alone: whether no other record begins on its line.
    """

    record: int
    line: int | None = None
    alone: bool = True

    def __str__(self) -> str:
        if self.line is None:
            return f"record {self.record}"
        return f"line {self.line}" + ("" if self.alone else f" (record {self.record})")


@dataclass(frozen=True, slots=True)
class Unread:
    """What stands where a record should be.

    Attributes:
        why: the reason that it cannot be read.
    """

    why: str


@dataclass(frozen=True, slots=True)
class Records:
    """Records of one source, in their order.

    Attributes:
        name: the source, for messages.
        places: where each stands.
        folder: where relative paths of images begin, unless set otherwise.
        read: gives the record of an index; :class:`Unread` where there is none.
    """

    name: str
    places: Sequence[Place]
    folder: Path | None
    read: Callable[[int], Any]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Any:
        return self.read(index)


def open_records(source: Any) -> Records:
    """The records of a file, of a directory, or of a data set in memory.

    Args:
        source: a path, or a ``datasets.Dataset``, or a list of records.

    Raises:
        InputError: there is no such file, or nothing that could be records in it.
        MissingDependencyError: a data set, without ``datasets``.
    """
    if not isinstance(source, (str, Path)):
        return _of_rows(source, "the data set", None)
    path = Path(source).expanduser()
    if path.is_dir():
        return _of_rows(_saved_dataset(path), str(source), path)
    if not path.is_file():
        raise InputError(f"There is no file {source}; name the file of training records.")
    if path.suffix == ".parquet":
        rows = _datasets().Dataset.from_parquet(str(path))
        return _of_rows(rows, str(source), path.parent)
    found = _of_text(path)
    if not found:
        raise InputError(f"{path} holds an empty list; name a file with training records.")
    places = tuple(place for place, _ in found)
    values = [value for _, value in found]
    return Records(str(source), places, path.parent, values.__getitem__)


def _of_text(path: Path) -> list[tuple[Place, Any]]:
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path} is not UTF-8 on line {line}; save it as UTF-8.") from error
    first = text.lstrip(_BLANK)[:1]
    if not first:
        raise InputError(f"{path} is empty; name a file of training records.")
    if first == "[":
        return _with_lines_of_their_own(_list(text))
    _refuse_one_object(path, text)
    return _lines(text)


def _refuse_one_object(path: Path, text: str) -> None:
    """Raise an ``InputError`` for a file that is one JSON object over many lines, or holds a list.

    An object on a line of its own is a record of JSON Lines.
    """
    written = text.strip(_BLANK)
    first = written.split("\n", 1)[0]
    if first != written and not isinstance(_parsed(first), Unread):
        return  # JSON Lines
    whole = _parsed(written)
    if not isinstance(whole, dict) or (first == written and _is_record(whole)):
        return
    lists = [
        name for name, value in whole.items() if isinstance(value, list) and not _is_record(whole)
    ]
    keys = ", ".join(map(repr, list(whole)[:5]))
    where = f"; its records may be the list under {lists[0]!r}" if lists else ""
    raise InputError(
        f"{path} is one JSON object (with {keys}) and neither a JSON list of records nor JSON "
        f"Lines, which have one record on each line{where}. Write the records as a list."
    )


def _is_record(found: dict[str, Any]) -> bool:
    return "conversations" in found or "messages" in found


def _lines(text: str) -> list[tuple[Place, Any]]:
    found: list[tuple[Place, Any]] = []
    for line, written in enumerate(text.split("\n"), 1):
        if written.strip(_BLANK):
            found.append((Place(len(found) + 1, line), _parsed(written)))
    return found


def _parsed(written: str) -> Any:
    try:
        return json.loads(written)
    except ValueError as error:
        return Unread(f"it is no JSON ({error})")


def _with_lines_of_their_own(records: list[tuple[Place, Any]]) -> list[tuple[Place, Any]]:
    """Lists that programs write stand on one line, which then says nothing about a record."""
    on_line = Counter(place.line for place, _ in records)
    return [(replace(place, alone=on_line[place.line] == 1), value) for place, value in records]


def _list(text: str) -> list[tuple[Place, Any]]:
    """The elements of a JSON list, each with its line."""
    decoder = json.JSONDecoder()
    found: list[tuple[Place, Any]] = []
    at, line, counted = text.index("[") + 1, 1, 0
    while True:
        at = _skip(text, at)
        if text[at : at + 1] == "]" and not found:
            return found
        line += text.count("\n", counted, at)
        counted = at
        place = Place(len(found) + 1, line)
        try:
            value, at = decoder.raw_decode(text, at)
        except ValueError as error:
            why = f"it is no JSON ({error}); nothing behind it was read"
            return [*found, (place, Unread(why))]
        found.append((place, value))
        at = _skip(text, at)
        if text[at : at + 1] == "]":
            return found
        if text[at : at + 1] != ",":
            line += text.count("\n", counted, at)
            why = "the list goes on without a comma or ends without a bracket"
            return [*found, (Place(len(found) + 1, line), Unread(f"{why}; reading ended there"))]
        at += 1


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at] in _BLANK:
        at += 1
    return at


def _of_rows(rows: Any, name: str, folder: Path | None) -> Records:
    try:
        count = len(rows)
    except TypeError as error:
        raise InputError(
            "Training data is a file, a directory, a list of records or a datasets.Dataset that "
            f"knows its length; this is a {type(rows).__name__}."
        ) from error
    if not count:
        raise InputError(f"{name} has no records; name one with training records.")
    return Records(
        name, [Place(number) for number in range(1, count + 1)], folder, rows.__getitem__
    )


def _saved_dataset(path: Path) -> Any:
    library = _datasets()
    try:
        found = library.load_from_disk(str(path))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} is no data set that datasets has saved with save_to_disk: {error}"
        ) from error
    if isinstance(found, library.DatasetDict):
        splits = ", ".join(found)
        raise InputError(f"{path} holds several splits ({splits}); name the directory of one.")
    return found


def _datasets() -> Any:
    try:
        datasets = importlib.import_module("datasets")
    except ImportError as error:
        raise MissingDependencyError(
            'Data sets need datasets; install it with `pip install "llavakit[train]"`.'
        ) from error
    datasets.disable_progress_bars()
    return datasets
