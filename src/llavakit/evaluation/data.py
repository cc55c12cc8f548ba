"""The files of a benchmark: question files, annotations, and where images are.

Faults in them are found before the first question is asked, and reported with file and line.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from llavakit._checks import checked
from llavakit.errors import InputError, LlavaKitError, SourceFetchError, SourceNotFoundError
from llavakit.values import Image, Message, Text

Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Question:
    """One question of a benchmark.

    Attributes:
        number: its place in the question file, from 0.
        id: the benchmark's own id; several questions may share it.
        prompt: the text that the model reads behind the image.
        image: a file, or the base64 of one; None for a question without an image.
        category: the part of the benchmark that it belongs to.
        record: all that the question file says.
        error: why it cannot be asked.
    """

    number: int
    id: str | int
    prompt: str
    image: Path | str | None
    category: str = ""
    record: Mapping[str, Any] = field(default_factory=dict)
    error: LlavaKitError | None = None

    def messages(self) -> tuple[Message, ...]:
        """Return the conversation that asks it."""
        if self.image is None:
            return (Message("user", self.prompt),)
        # Text in a data file is base64 here and never the name of another file.
        picture = Image(self.image, from_url_field=isinstance(self.image, str))
        return (Message("user", [picture, Text(self.prompt)]),)


@checked
@dataclass(frozen=True, slots=True)
class Data:
    """Where a benchmark's files are.

    Attributes:
        folder: the benchmark's folder, laid out as the original's scripts expect it.
        questions, images, annotations: files and folders that lie elsewhere.
    """

    folder: Path
    questions: Path | None = None
    images: Path | None = None
    annotations: Path | None = None

    @checked
    def question_file(self, *names: str) -> Path:
        """Return the question file: the one that was named, or the first of these in the folder."""
        return _first(self.questions, self.folder, names, "questions", "--questions")

    @checked
    def annotation_file(self, *names: str) -> Path:
        """Return the annotation file, found in the same way."""
        return _first(self.annotations, self.folder, names, "annotations", "--annotations")

    @checked
    def has_annotations(self, *names: str) -> bool:
        """Return whether there are annotations; a file that was named must be there."""
        return self.annotations is not None or any((self.folder / one).exists() for one in names)

    @checked
    def image_folder(self, name: str = ".") -> Path:
        """Return the folder that names of images start from."""
        return self.images or self.folder / name


def _first(named: Path | None, folder: Path, names: Sequence[str], what: str, option: str) -> Path:
    tried = [named] if named is not None else [folder / name for name in names]
    for path in tried:
        if path.exists():
            return path
    if named is not None:
        raise SourceNotFoundError(
            f"There are no {what} in {named}: there is no such file; check {option}."
        )
    if not folder.is_dir():
        raise SourceNotFoundError(
            f"{folder} is not a folder; name the one of the benchmark's files."
        )
    raise SourceNotFoundError(
        f"The {what} are missing: {folder} has no {' or '.join(names)}; put it there, or name the "
        f"file with {option}."
    )


def picture_in(folder: Path, name: str) -> Path:
    """Return the file of an image's name, which may have folders but does not leave its own.

    Raises:
        InputError: it does.
    """
    parts = PurePosixPath(name).parts
    if not parts or parts[0] == "/" or ".." in parts or "\x00" in name:
        raise InputError(
            f"The image {name!r} is not below the benchmark's folder; give a name that is."
        )
    return folder.joinpath(*parts)


@dataclass(frozen=True, slots=True)
class DataLine:
    """An object of a file, and its place there."""

    path: Path
    place: str
    record: Record

    def text(self, key: str) -> str:
        """Return a value that must be text."""
        value: str = self._typed(key, str, "text")
        return value

    def id(self, key: str) -> str | int:
        """Return a value that must be text or a whole number."""
        value = self._value(key)
        if isinstance(value, bool) or not isinstance(value, (str, int)):
            raise self.wrong(f"{key!r} must be text or a whole number")
        return value

    def index(self, key: str) -> int:
        """Return a value that must be a whole number."""
        value: int = self._typed(key, int, "a whole number")
        return value

    def texts(self, key: str, of: str | None = None) -> list[str]:
        """Return a list of texts, at least one; or of objects that hold each text under ``of``."""
        values = self._typed(key, list, "a list")
        if of is not None:
            values = [value.get(of) if isinstance(value, dict) else None for value in values]
        if not values or not all(isinstance(value, str) for value in values):
            raise self.wrong(f"{key!r} must be a list of texts that is not empty")
        return list(values)

    def wrong(self, reason: str) -> InputError:
        """Return an error about this object; to be raised."""
        return InputError(f"{self.path}, {self.place}: {reason}.")

    def _typed(self, key: str, kind: type, words: str) -> Any:
        value = self._value(key)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise self.wrong(f"{key!r} must be {words}")
        return value

    def _value(self, key: str) -> Any:
        if key not in self.record:
            raise self.wrong(f"there is no {key!r}")
        return self.record[key]


def read_lines(path: Path) -> list[DataLine]:
    """Read the objects of a file of JSON Lines; empty lines do not count.

    Raises:
        InputError: a line is not a JSON object, or all lines are empty.
        SourceNotFoundError, SourceFetchError: the file cannot be read.
    """
    lines = []
    for number, raw in enumerate(read(path).split(b"\n"), 1):
        if not raw.strip():
            continue
        try:
            record = json.loads(raw)
        except ValueError as error:
            raise InputError(
                f"{path}, line {number}: this is not JSON ({_reason(error)})."
            ) from error
        if not isinstance(record, dict):
            raise InputError(f"{path}, line {number}: this is not a JSON object.")
        lines.append(DataLine(path, f"line {number}", record))
    if not lines:
        raise InputError(f"{path} is empty; it must hold a JSON object on each line.")
    return lines


def read_json(path: Path) -> Any:
    """Read the value of a JSON file.

    Raises:
        InputError: it is not JSON.
        SourceNotFoundError, SourceFetchError: the file cannot be read.
    """
    try:
        return json.loads(read(path))
    except json.JSONDecodeError as error:
        raise InputError(f"{path}, line {error.lineno}: this is not JSON ({error.msg}).") from error
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({_reason(error)}).") from error


def entries(path: Path, value: Any, what: str) -> list[DataLine]:
    """Return the objects of a list, or of the values of an object, in a JSON file.

    Args:
        path: the file, for errors.
        value: what was read from it.
        what: what the objects are called there.

    Raises:
        InputError: it is neither, or one element is not an object.
    """
    if isinstance(value, dict):
        pairs = [(f"{what} {key!r}", one) for key, one in value.items()]
    elif isinstance(value, list):
        pairs = [(f"{what} number {number}", one) for number, one in enumerate(value, 1)]
    else:
        raise InputError(f"{path} must hold a list of {what}s, or an object of them.")
    found: list[DataLine] = []
    for place, one in pairs:
        if not isinstance(one, dict):
            raise InputError(f"{path}, {place}: this is not a JSON object.")
        found.append(DataLine(path, place, one))
    return found


def keyed(lines: Sequence[DataLine], key: Callable[[DataLine], Any]) -> dict[Any, DataLine]:
    """Index objects by a key of theirs.

    Raises:
        InputError: two objects have the same key.
    """
    found: dict[Any, DataLine] = {}
    for line in lines:
        value = key(line)
        if value in found:
            raise line.wrong(f"{value!r} is there twice")
        found[value] = line
    return found


def read(path: Path) -> bytes:
    """Read the bytes of a file of the benchmark.

    Raises:
        SourceNotFoundError, SourceFetchError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise SourceNotFoundError(f"{path} is missing; put the file there.") from error
    except OSError as error:
        raise SourceFetchError(
            f"{path} cannot be read ({error.strerror}); check its permissions."
        ) from error


def _reason(error: ValueError) -> str:
    return getattr(error, "msg", None) or " ".join(str(error).split())[:80]
