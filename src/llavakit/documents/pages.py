"""Pages of a document, one image each, read one at a time.

How a PDF is rendered or a TIFF is walked is in :mod:`llavakit.documents._pdf` and
:mod:`llavakit.documents._frames`; this module knows only that a document has numbered
pages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any

from llavakit._checks import checked, members
from llavakit.documents.attachments import MARK, distinct, split_name
from llavakit.documents.limits import PageLimit, page_limit
from llavakit.documents.names import label_of, name_of
from llavakit.documents.passwords import Password, open_with
from llavakit.documents.readers import PageReader
from llavakit.documents.suffixes import Note, log_left_out
from llavakit.documents.text_layer import TextLayer
from llavakit.errors import (
    DocumentError,
    ImageError,
    MissingDependencyError,
    ParameterError,
    SourceError,
    UnsupportedImageError,
)
from llavakit.images import Picture, hold
from llavakit.sources import DEFAULT_POLICY, SourcePolicy, read_source
from llavakit.sources.inline import check_length

if TYPE_CHECKING:
    from PIL import Image as PILImage

    from llavakit.documents._isolated import Renderer

MAX_PAGE_PIXELS = 16_000_000
"""Default cap on the pixels of one page: A3 at 280 dpi, A4 at 400 dpi; 48 MB as RGB."""


@checked
@dataclass(frozen=True, slots=True)
class Page:
    """One page.

    Attributes:
        source: a name of the document: its path or address; never its content.
        number: the page's number; the first is 1.
        picture: its pixels.
        text: the text layer of a PDF's page, where it was asked for; None otherwise.
        layer: the same with the boxes of its words, and whether it says what the page shows.
    """

    source: str
    number: int
    picture: Picture
    text: str | None = None
    layer: TextLayer | None = None

    @property
    def needs_reading(self) -> bool:
        """Whether the page has no text that says what it shows, so that a model has to read it.

        A page without a layer is judged by its text alone.
        """
        if self.layer is not None:
            return not self.layer.is_whole
        return not (self.text or "").strip()

    @property
    def digest(self) -> str:
        """The image's digest: equal pages look equal, whatever document they stand in."""
        return self.picture.digest

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.picture.size


@checked
def open_pages(
    source: Any,
    *,
    dpi: float = 144,
    max_pixels: int = MAX_PAGE_PIXELS,
    pages: Iterable[int] | None = None,
    policy: SourcePolicy = DEFAULT_POLICY,
    text: bool = False,
    password: Password = None,
) -> Iterator[Page]:
    """The pages of a document, each read when it is asked for.

    Args:
        source: a PDF, a TIFF of any number of frames, or an image: a path, URL, bytes or
            whatever else :func:`llavakit.images.open_picture` takes. Nothing is opened
            before the first page is asked for.
        dpi: resolution at which a PDF is rendered. Scanned pages keep their own.
        max_pixels: most pixels of a page. A larger one is rendered at a lower resolution
            or shrunk, its proportions kept: the boxes of a PDF's pages can be of any size.
        pages: numbers of the pages to read, from 1, in this order; None reads all. A
            reading that was interrupted after page n goes on with
            ``range(n + 1, count_pages(source) + 1)``.
        policy: what may be opened, and the caps on bytes, pixels and sides.
        text: also read the text layer of a PDF.
        password: what opens an encrypted document: a password, a mapping from names of files to
            passwords, or a function that is given the name and returns the password or None.

    Raises:
        ParameterError: at once, for numbers that make no sense.
        SourceError: while iterating: it cannot be reached, or the policy forbids it.
        DocumentError: while iterating: encrypted, damaged, too large, or no such page.
        MissingDependencyError: while iterating: PDFs need ``llavakit[documents]``.

    PDFs are rendered one page at a time in the whole process, as pdfium demands; the lock is
    not held between pages. A single page's rendering cannot be interrupted.
    """
    limit = page_limit(dpi, max_pixels, policy)
    numbers = _numbers(pages)
    return _pages(source, numbers, Opening(dpi, limit, policy, text, None, password))


@checked
def count_pages(
    source: Any, *, policy: SourcePolicy = DEFAULT_POLICY, password: Password = None
) -> int:
    """The number of pages of a document, without reading them (see :func:`open_pages`)."""
    limit = PageLimit(policy.max_pixels, policy.max_side)
    reader = open_reader(source, label_of(source), 72, limit, policy, False, None, password)
    try:
        return reader.count()
    finally:
        reader.close()


def _pages(source: Any, numbers: Sequence[int] | None, opening: Opening) -> Iterator[Page]:
    name, label = name_of(source), label_of(source)
    known = (opening.dpi, opening.limit, opening.policy, opening.text)
    reader = open_reader(source, label, *known, None, opening.password)
    try:
        for number in count(1) if numbers is None else numbers:
            try:
                found = reader.page(number)
            except ImageError as error:
                raise DocumentError(f"Page {number} of {label} cannot be read: {error}") from error
            if found is None:
                if numbers is None:
                    return
                raise DocumentError(
                    f"{label} has no page {number}; its pages are 1 to {reader.count()}."
                )
            image, layer = found
            yield Page(name, number, Picture(image), None if layer is None else layer.text, layer)
    finally:
        reader.close()


def open_reader(
    source: Any,
    label: str,
    dpi: float,
    limit: PageLimit,
    policy: SourcePolicy,
    text: bool,
    renderer: Renderer | None = None,
    password: Password = None,
) -> PageReader:
    """Opens a document (see :func:`open_pages`); a PDF in the renderer's process, if one is given.

    Raises:
        SourceError, DocumentError, MissingDependencyError: as :func:`open_pages` says.
    """
    opening = Opening(dpi, limit, policy, text, renderer, password)
    return opening.of_source(source, name_of(source), label)


@dataclass(frozen=True, slots=True)
class Opening:
    """How documents are opened (see :func:`open_pages`)."""

    dpi: float
    limit: PageLimit
    policy: SourcePolicy
    text: bool
    renderer: Renderer | None = None
    password: Password = None
    note: Note = log_left_out

    def of_source(
        self, source: Any, name: str, label: str, holding: Callable[..., Any] = hold
    ) -> PageReader:
        """Open a document, wherever it is.

        Args:
            source: as :func:`open_pages` takes it.
            name: by which its password is found.
            label: its name in errors.
            holding: :func:`~llavakit.images.hold`, or what calls it in another thread.

        Raises:
            SourceError, DocumentError, MissingDependencyError: as :func:`open_pages` says.
        """
        from llavakit.documents._frames import ImageReader

        try:
            inside, inner = split_name(source) if isinstance(source, str) else (source, None)
            if inner is not None:
                return self._attached_to(inside, inner, label)
            held = holding(source, self.policy.max_bytes)
            if isinstance(held, Picture):
                rgb = held.rgb
                return ImageReader([lambda: rgb], self.limit)
            return self.of_bytes(read_source(held, self.policy), name, label)
        except SourceError:
            raise
        except ImageError as error:
            raise DocumentError(f"{label} cannot be read: {error}") from error

    def _attached_to(self, parent: str, inner: str, label: str) -> PageReader:
        """Open what is attached to a document."""
        reader = self.of_source(parent, name_of(parent), label_of(parent))
        try:
            names = distinct(reader.attachments())
            if inner not in names:
                raise DocumentError(f"{label_of(parent)} has no attachment {inner[-80:]!r}.")
            data = reader.attachment(names.index(inner))
        finally:
            reader.close()
        return self.of_attached(data, f"{parent}{MARK}{inner}", label)

    def of_bytes(self, data: bytes, name: str, label: str, *, archives: bool = True) -> PageReader:
        """Open a document that is read already.

        Args:
            data: all of it.
            name: by which its password is found.
            label: its name in errors.
            archives: whether it may be an archive; those in archives are not opened.

        Raises:
            ImageError, DocumentError, MissingDependencyError: as :func:`open_pages` says.
        """
        from llavakit.documents._frames import FrameReader, ImageReader
        from llavakit.images.decode import decode
        from llavakit.sources.formats import sniff

        kind = sniff(data)
        if kind == "PDF":
            return open_with(self.password, name, lambda one: self._pdf(data, label, one))
        if kind == "TIFF":
            return FrameReader(data, label, self.limit, self.policy)
        if kind == "HEIC":
            return ImageReader(_heif_pages(data, self.policy), self.limit)
        if kind == "ZIP" and archives:
            from llavakit.documents._archive import ArchiveReader

            def open_member(content: bytes, inner: str) -> PageReader:
                return self.of_bytes(content, inner, inner[-60:], archives=False)

            unlocked = partial(open_with, self.password, name)
            return ArchiveReader(data, label, self.policy, unlocked, open_member, self.note)
        image = decode(data, self.policy)
        return ImageReader([lambda: image], self.limit)

    def of_attached(self, data: bytes, name: str, label: str) -> PageReader:
        """Open a document that was in another one; arguments and errors as :meth:`of_bytes`."""
        check_length(len(data), self.policy.max_bytes)
        return self.of_bytes(data, name, label)

    def _pdf(self, data: bytes, label: str, password: str | None) -> PageReader:
        if self.renderer is not None:
            return self.renderer.open(data, label, self.dpi, self.limit, self.text, password)
        from llavakit.documents._pdf import PdfReader

        return PdfReader(data, label, self.dpi, self.limit, self.text, password)


def _heif_pages(data: bytes, policy: SourcePolicy) -> list[Callable[[], PILImage.Image]]:
    """The images of a HEIC file; a folder of photographs is not ended by a missing package."""
    from llavakit.images.decode import heif_images

    try:
        return heif_images(data, policy)
    except MissingDependencyError as error:
        raise UnsupportedImageError(str(error)) from error


def _numbers(pages: Iterable[int] | None) -> Sequence[int] | None:
    if pages is None:
        return None
    numbers = pages if isinstance(pages, range) else members("pages", pages, int)
    ends = (numbers[0], numbers[-1]) if isinstance(numbers, range) and numbers else numbers
    for number in ends:
        if number < 1:
            raise ParameterError(f"pages holds {number!r}; pages are numbered from 1.")
    return numbers
