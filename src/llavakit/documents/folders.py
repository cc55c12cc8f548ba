"""What there is to read: names of files, folders, and pages wished for -> documents."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from llavakit._checks import Takes, checked, refused
from llavakit.documents.names import name_of
from llavakit.documents.ranges import PageRange, named_range
from llavakit.documents.suffixes import SUFFIXES, LeftOut, Note, log_left_out
from llavakit.errors import DocumentError, InputError, SourceFetchError, SourceNotAllowedError
from llavakit.images import Picture
from llavakit.sources import SourcePolicy
from llavakit.sources.files import check_place


@checked
@dataclass(frozen=True, slots=True)
class Document:
    """One document to read, and which pages of it.

    Attributes:
        source: whatever :func:`~llavakit.documents.open_pages` takes.
        pages: the pages to read; None reads all. A string such as ``"1-3,7"`` is parsed.
        earlier: what an earlier run did with its first pages, which are skipped: for each of
            them the name of its error's class, or None if it was read.
    """

    source: Any
    pages: Annotated[PageRange | None, Takes(PageRange | str | None)] = None
    earlier: tuple[str | None, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.pages, str):
            object.__setattr__(self, "pages", PageRange.parse(self.pages))

    @property
    def name(self) -> str:
        """The name that its pages carry."""
        return name_of(self.source)


@checked
@dataclass(frozen=True, slots=True)
class Failure:
    """A page, or a document, that could not be read.

    Attributes:
        source: the document's name, as in :class:`~llavakit.documents.Page`.
        number: the page's number; None if the (rest of the) document is meant.
        error: why, as it would have been raised.
        pages: the pages that a failure without a number stands for, where the document was
            opened and given up; None where nothing is known of its pages.
    """

    source: str
    number: int | None
    error: InputError
    pages: PageRange | None = None

    @property
    def lost(self) -> int | None:
        """How many pages were not read; None where nothing is known of them."""
        if self.number is not None:
            return 1
        return None if self.pages is None else len(self.pages)


def several(sources: Any) -> list[Any]:
    """The sources that are meant: those of a list, or one that stands alone.

    Raises:
        ParameterError: neither a list nor anything that can be opened.
    """
    # Taken for its letters, the "/" of a name would be a whole disk. A file and an array can be
    # walked over as well: by lines and by rows.
    alone = isinstance(sources, (str, bytes, bytearray, memoryview, os.PathLike, Document, Picture))
    if alone or hasattr(sources, "read") or hasattr(sources, "__array_interface__"):
        return [sources]
    if not isinstance(sources, Iterable) or isinstance(sources, (Mapping, type)):
        raise refused(
            "sources", sources, "a path, an address, a document's bytes or a list of them"
        )
    return list(sources)


def list_documents(
    sources: Any, pages: str | None, policy: SourcePolicy, note: Note = log_left_out
) -> list[Document | Failure]:
    """The documents that sources name, folders opened, none twice; no file is opened.

    Args:
        sources: as :func:`~llavakit.documents.open_files` takes them. ``scan.pdf#pages=1-3``
            names pages too, unless there is a file that is called so.
        pages: the pages to read of documents that name none.
        policy: which folders may be listed.
        note: called with what is left out of a folder.

    Raises:
        ParameterError: a range of pages that is none.
    """
    general = None if pages is None else PageRange.parse(pages)
    found: dict[tuple[object, PageRange | None], Document | Failure] = {}
    for source in several(sources):
        document = _wished(source)
        if document.pages is None:
            document = replace(document, pages=general)
        for one in _opened(document, policy, note):
            key = _place(one.source) if isinstance(one, Document) else one.source
            wish = one.pages if isinstance(one, Document) else None
            found.setdefault((key, wish), one)
    return list(found.values())


def _wished(source: Any) -> Document:
    if isinstance(source, Document):
        return source
    return Document(*named_range(source)) if isinstance(source, str) else Document(source)


def _place(source: Any) -> object:
    """Return a key that is equal for two names of the same source."""
    if isinstance(source, (str, Path)) and "://" not in str(source):
        try:
            return os.path.realpath(source)
        except (OSError, ValueError):
            return source
    return source if isinstance(source, (str, bytes)) else id(source)


def _opened(document: Document, policy: SourcePolicy, note: Note) -> Iterator[Document | Failure]:
    """The documents of a folder, or the document itself."""
    source = document.source
    if not (isinstance(source, (str, os.PathLike)) and _is_folder(source)):
        yield document  # a failure to read it is reported when it is its turn
        return
    found = False
    left_out: Counter[str] = Counter()
    try:
        for one in _listed(Path(source), policy, left_out):
            found = True
            yield one if isinstance(one, Failure) else replace(document, source=one)
    except InputError as error:
        yield Failure(document.name, None, error)
        return
    if left_out:
        note(LeftOut(document.name, left_out))
    if not found:
        yield Failure(
            document.name,
            None,
            DocumentError(f"The folder {document.name[-200:]} holds no images and no documents."),
        )


def _is_folder(source: str | os.PathLike[str]) -> bool:
    try:
        return os.path.isdir(source)
    except (OSError, ValueError):
        return False


def _listed(folder: Path, policy: SourcePolicy, left_out: Counter[str]) -> Iterator[str | Failure]:
    if not policy.allow_files:
        raise SourceNotAllowedError(
            f"{folder} is a local folder, and SourcePolicy(allow_files=False) forbids them."
        )
    check_place(folder, os.path.realpath(folder), policy)
    closed: list[OSError] = []
    # Links to folders are not followed: they may lead round in circles, or out of the fence.
    for at, folders, files in os.walk(folder, onerror=closed.append):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if name.startswith("."):
                continue
            suffix = Path(name).suffix.lower()
            if suffix in SUFFIXES:
                yield str(Path(at, name))
            else:
                left_out[suffix] += 1
        while closed:
            yield _closed(closed.pop())
    while closed:
        yield _closed(closed.pop())


def _closed(error: OSError) -> Failure:
    name = str(error.filename)
    return Failure(name, None, SourceFetchError(f"{name} cannot be listed ({error.strerror})."))
