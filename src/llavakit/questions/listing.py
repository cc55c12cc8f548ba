"""What can be asked about, by its names: attachments, and files below open folders."""

from __future__ import annotations

import os
from collections.abc import Container, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from llavakit._checks import checked
from llavakit.documents.suffixes import SUFFIXES
from llavakit.errors import InputError, SourceNotAllowedError
from llavakit.images import Picture
from llavakit.questions.asking import ImageAsker
from llavakit.questions.references import Pictures
from llavakit.sources import SourcePolicy
from llavakit.sources.files import check_place
from llavakit.values import Image

MOST_FILES = 200
"""Most files of a list; more can be named all the same."""


@dataclass(frozen=True, slots=True)
class Listed:
    """One image or document that can be named.

    Attributes:
        name: what to call it.
        kind: ``"image"``, ``"document"``, or ``"file"`` below an open folder, which is not opened
            for the list.
        pages: the number of pages of a document.
        error: why an attachment cannot be opened.
    """

    name: str
    kind: str
    pages: int | None = None
    error: str | None = None

    def record(self) -> dict[str, Any]:
        """Return what there is of it in types of JSON."""
        return {name: value for name, value in asdict(self).items() if value is not None}


class Attached:
    """The attachments of an asker; each is opened once, and again when its file has changed."""

    def __init__(self, asker: ImageAsker) -> None:
        self._asker = asker
        self._known: dict[str, tuple[object, Listed]] = {}

    def listed(self) -> list[Listed]:
        """Open and list all of them."""
        pictures = self._asker.pictures()
        return [self._one(name, image, pictures) for name, image in self._asker.attachments.items()]

    def _one(self, name: str, image: Image, pictures: Pictures) -> Listed:
        stamp = _stamp(image)
        known = self._known.get(name)
        if known is not None and known[0] == stamp:
            return known[1]
        try:
            with closing(pictures.open(name)) as opened:
                document = opened.document
                found = (
                    Listed(name, "image")
                    if document.is_image
                    else Listed(name, "document", document.count())
                )
        except InputError as error:
            return Listed(name, "image", error=str(error))
        self._known[name] = (stamp, found)
        return found


@checked
def list_files(asker: ImageAsker, most: int = MOST_FILES) -> tuple[list[Listed], bool]:
    """List files below the open folders by the names that can be asked about.

    Args:
        asker: whose folders.
        most: most files to list.

    Returns:
        The files, and whether there are more of them.

    Left out are links that lead out of the folders, which cannot be opened, hidden files, and names
    with control characters or broken Unicode, which would not stay in their line.
    """
    reach = asker.reach()
    named = (
        _name(path, root, reach.roots, asker.attachments)
        for root, path in _files(reach.roots, reach.narrowed)
    )
    found = list(islice(named, most + 1))
    return [Listed(name, "file") for name in found[:most]], len(found) > most


def _files(roots: tuple[Path, ...], policy: SourcePolicy) -> Iterator[tuple[Path, Path]]:
    for root in roots:
        for at, folders, files in os.walk(root):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(files):
                path = Path(at, name)
                if not str(path).isprintable():
                    continue
                if path.suffix.lower() in SUFFIXES and _may_open(path, policy):
                    yield root, path


def _may_open(path: Path, policy: SourcePolicy) -> bool:
    if path.name.startswith(".") or not path.is_file():
        return False
    try:
        check_place(path, os.path.realpath(path), policy)
    except SourceNotAllowedError:
        return False
    return True


def _name(path: Path, root: Path, roots: tuple[Path, ...], attachments: Container[str]) -> str:
    """Return the name under which a file is found, and no other.

    A name is looked for among the attachments first, and then in one folder after the other.
    """
    name = path.relative_to(root).as_posix()
    earlier = roots[: roots.index(root)]
    if any(os.path.lexists(folder / name) for folder in earlier):
        return str(path)
    return f"./{name}" if name in attachments else name


def _stamp(image: Image) -> object:
    """Return what changes when a file does; None for what is held in memory, or fetched."""
    source = image.source
    if isinstance(source, (bytes, Picture)):
        return None
    try:
        status = Path(source).stat()
    except (OSError, ValueError):
        return None
    return status.st_mtime_ns, status.st_size
