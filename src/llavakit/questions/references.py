"""What a model may name, and what is opened for a name.

A name comes from a model, and may have been chosen by the author of a message or of an image that
the model has seen. So nothing is guessed from its form: a name is one that was given out, a path
below a folder that the program opened, or, if the program allows it, an address or data.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

from llavakit._checks import checked, members
from llavakit.errors import (
    ImageTooLargeError,
    InputError,
    ParameterError,
    SourceNotAllowedError,
    SourceNotFoundError,
)
from llavakit.images import Picture
from llavakit.questions.opening import OpenDocument, open_named
from llavakit.sources import DEFAULT_POLICY, SourcePolicy
from llavakit.sources.files import check_place
from llavakit.sources.inline import decode_data_url, shown
from llavakit.values import Image

LONGEST = 2048
"""Most characters of a name: longer ones are images written out, not names."""

SENT = "the image that was sent"
"""What an image is called that the caller sent itself."""
DATA_HINT = "an image's own data, as data:image/png;base64,..."

_RESERVED = re.compile(r"(image|document)[ _-]?(\d{1,6})", re.IGNORECASE)
_PAGE = re.compile(r"(.+)#page=(\d{1,6})", re.IGNORECASE | re.DOTALL)
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]+):", re.IGNORECASE)  # one letter is a Windows drive
_QUOTES = " \t\r\n\"'`"
_LISTED = 40


@checked
@dataclass(frozen=True, slots=True)
class Shown:
    """An image or document that stands in the conversation.

    Attributes:
        source: where it is; or why it cannot be opened.
        document: it is a PDF.
        by_user: a user or the program put it there, not a tool or a model.
    """

    source: Image | InputError
    document: bool = False
    by_user: bool = True


@checked
@dataclass(frozen=True, slots=True)
class NamedSource:
    """An image or document that has a name; ``policy`` says what may be opened for it."""

    source: Image | InputError
    policy: SourcePolicy


@checked
@dataclass(frozen=True, slots=True)
class Reach:
    """What a model may name beside the images of the conversation; by default nothing.

    Attributes:
        roots: folders below which it may name files. Relative paths start there.
        allow_urls: whether it may name http(s) addresses.
        allow_data: whether it may send an image itself, as a ``data:`` URL in base64.
        policy: what this program may open at all; ``roots`` and ``allow_urls`` only narrow it.
    """

    roots: tuple[Path, ...] = ()
    allow_urls: bool = False
    policy: SourcePolicy = DEFAULT_POLICY
    allow_data: bool = False

    def __post_init__(self) -> None:
        if self.roots and not self.policy.allow_files:
            raise ParameterError("roots opens folders, but the source policy forbids all files.")
        if self.allow_urls and not self.policy.allow_urls:
            raise ParameterError("allow_urls is set, but the source policy forbids all URLs.")
        for root in self.roots if self.policy.roots is not None else ():
            try:
                check_place(root, os.path.realpath(root), self.policy)
            except SourceNotAllowedError as error:
                raise ParameterError(
                    f"The folder {shown(root)} of roots is not below the source policy's roots."
                ) from error

    @property
    def narrowed(self) -> SourcePolicy:
        """The policy for what a model or a tool names."""
        return replace(self.policy, roots=self.roots, allow_urls=self.allow_urls)


@dataclass(frozen=True, slots=True)
class Found:
    """An image that was asked for.

    Attributes:
        name: the name under which it was found; of a page, with ``#page=``.
        picture: its pixels.
        document: the document's name, of a page.
        page: the page's number, of a page.
    """

    name: str
    picture: Picture
    document: str | None = None
    page: int | None = None


@dataclass(frozen=True, slots=True)
class FoundDocument:
    """An image or a document that was asked for, open; close ``document`` in the end.

    Attributes:
        name: the name under which it was found, without a page.
        document: its pages.
        page: the page that the reference named.
    """

    name: str
    document: OpenDocument
    page: int | None = None

    def found(self, page: int | None) -> Found:
        """Return a page of it; None for an image, or a document of one page.

        Raises:
            DocumentError: no such page, a page that cannot be read, or several and none named.
        """
        picture = self.document.picture(page)
        if self.document.is_image:
            return Found(self.name, picture)
        named = self.name if page is None else f"{self.name}#page={page}"
        return Found(named, picture, self.name, page or 1)

    def close(self) -> None:
        """Free what it holds; safe to call twice."""
        self.document.close()


@checked
@dataclass(frozen=True, slots=True)
class Pictures:
    """All that a model may ask about at one moment.

    Attributes:
        known: what has a name.
        reach: what may be named beside that.
    """

    known: Mapping[str, NamedSource] = field(default_factory=dict)
    reach: Reach = Reach()

    @checked
    def find(self, reference: str) -> Found:
        """Return the image of a name; ``#page=3`` behind a name is a page of a document.

        Raises:
            SourceNotFoundError: there is none of that name; the message lists those there are.
            SourceNotAllowedError: it may not be opened, or is an image's data and not a name.
            ImageError, DocumentError: it is there and cannot be used.
        """
        with closing(self.open(reference)) as opened:
            return opened.found(opened.page)

    @checked
    def open(self, reference: str) -> FoundDocument:
        """Open the image or document of a name, all its pages; errors as :meth:`find`."""
        reference = reference.strip(_QUOTES)
        if reference[:5].lower() == "data:":
            return self._sent(reference)
        if len(reference) > LONGEST:
            raise SourceNotAllowedError(
                f"The image must be a name of at most {LONGEST:,} characters, and this text has "
                f"{len(reference):,}. " + self._choices()
            )
        if (known := self._known(reference)) is not None:
            return self._opened(*known, None)
        name, page = _split(reference)
        if (known := self._known(name)) is not None:
            return self._opened(*known, page)
        return FoundDocument(name, self._reached(name), page)

    def _known(self, name: str) -> tuple[str, NamedSource] | None:
        if name in self.known:
            return name, self.known[name]
        match = _RESERVED.fullmatch(name)
        name = f"{match[1].lower()}_{int(match[2])}" if match else ""
        return (name, self.known[name]) if name in self.known else None

    def _opened(self, name: str, known: NamedSource, page: int | None) -> FoundDocument:
        if isinstance(known.source, InputError):
            raise known.source
        return FoundDocument(name, open_named(known.source, name, known.policy), page)

    def _sent(self, reference: str) -> FoundDocument:
        """Open what the caller sent itself."""
        if not self.reach.allow_data:
            raise SourceNotAllowedError(
                "The image must be a name, not the image's data. " + self._choices()
            )
        url, page = _split(reference)
        try:
            data = decode_data_url(url, self.reach.policy.max_bytes)
        except ImageTooLargeError as error:
            raise ImageTooLargeError(
                f"The image that was sent is too large: the most are "
                f"{self.reach.policy.max_bytes:,} bytes."
            ) from error
        return FoundDocument(SENT, open_named(Image(data), SENT, self.reach.narrowed), page)

    def _reached(self, name: str) -> OpenDocument:
        """Open a file or an address."""
        policy = self.reach.narrowed
        scheme = _SCHEME.match(name)
        if scheme is None:
            return self._file(name, policy)
        if scheme[1].lower() not in ("http", "https") or not self.reach.allow_urls:
            raise SourceNotAllowedError(
                f"The address {shown(name)} may not be opened. " + self._choices()
            )
        return open_named(Image(name, from_url_field=True), shown(name), policy)

    def _file(self, name: str, policy: SourcePolicy) -> OpenDocument:
        for root in self.reach.roots:
            try:
                return open_named(Image(root / name), shown(name), policy)
            except SourceNotFoundError:
                continue
        raise SourceNotFoundError(f"There is no image {shown(name)}. " + self._choices())

    def _choices(self) -> str:
        """Return a sentence on what can be named instead."""
        choices = [f"these: {first_names(self.known)}"] if self.known else []
        choices += ["a file of the open folders by its path"] if self.reach.roots else []
        choices += ["an image by its http(s) URL"] if self.reach.allow_urls else []
        choices += [DATA_HINT] if self.reach.allow_data else []
        return f"You can name {', or '.join(choices)}." if choices else "No image can be named."


@checked
def numbered(things: Iterable[Shown], reach: Reach) -> dict[str, NamedSource]:
    """Name the images of a conversation ``image_1``, ``image_2``, ..., its PDFs as ``document_1``.

    What a user or the program put there is opened as in any message. A path or an address that
    came out of a tool or a model is as if the model had named it.
    """
    known: dict[str, NamedSource] = {}
    for name, thing in named(members("things", things, Shown)):
        known[name] = NamedSource(thing.source, reach.policy if thing.by_user else reach.narrowed)
    return known


def first_names(known: Iterable[str]) -> str:
    """Return names in one line, and dots behind the first 40 of them."""
    names = list(known)
    return ", ".join(names[:_LISTED]) + (", ..." if len(names) > _LISTED else "")


def _split(reference: str) -> tuple[str, int | None]:
    """Split a name from the page behind it."""
    match = _PAGE.fullmatch(reference)
    return (match[1].strip(), int(match[2])) if match else (reference, None)


def named(things: Iterable[Shown]) -> Iterator[tuple[str, Shown]]:
    """Yield the images and documents of a conversation, in their order, with their names."""
    counts = {"image": 0, "document": 0}
    for thing in things:
        kind = "document" if thing.document else "image"
        counts[kind] += 1
        yield f"{kind}_{counts[kind]}", thing


def check_names(names: Sequence[str]) -> None:
    """Refuse names of attachments that a model could not use.

    Raises:
        ParameterError: empty, or such as the images of a conversation have.
    """
    for name in names:
        if not isinstance(name, str) or not name.strip(_QUOTES) or name != name.strip(_QUOTES):
            raise ParameterError(
                f"{name!r} is not a name for an attachment; use one such as 'plan'."
            )
        if _RESERVED.fullmatch(name) or len(name) > LONGEST or name[:5].lower() == "data:":
            raise ParameterError(
                f"{name[:80]!r} cannot name an attachment: image_1, document_1 and so on are the "
                "images of the conversation; use one such as 'plan'."
            )
