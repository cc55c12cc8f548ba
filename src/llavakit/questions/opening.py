"""A named image or document, opened; errors name it as the caller did, and hold no secrets.

A model reads these errors, and may pass them on to a stranger: they contain the name that the
model used, and neither paths of this machine nor addresses of its network.
"""

from __future__ import annotations

from types import TracebackType
from typing import Self

from llavakit.documents._isolated import Renderer
from llavakit.documents.limits import PageLimit
from llavakit.documents.message import DPI, PAGE_SECONDS
from llavakit.documents.pages import MAX_PAGE_PIXELS, open_reader
from llavakit.documents.readers import PageReader
from llavakit.errors import (
    DocumentError,
    ImageError,
    ImageTooLargeError,
    SourceFetchError,
    SourceNotAllowedError,
    SourceNotFoundError,
)
from llavakit.images import Picture, open_picture
from llavakit.images.isolated import DecodeLimitError, open_isolated
from llavakit.sources import SourcePolicy, read_source
from llavakit.sources.formats import sniff
from llavakit.values import Image

DOCUMENTS = ("PDF", "TIFF")


class OpenDocument:
    """An image, or a document of pages, that is open. Close it; a PDF has a process of its own.

    Args:
        name: what the caller named it, for errors.
        image: the pixels, if it is one image.
        reader: its pages, if it is a document.
        renderer: the process that draws them.
    """

    def __init__(
        self,
        name: str,
        image: Picture | None = None,
        reader: PageReader | None = None,
        renderer: Renderer | None = None,
    ) -> None:
        self.name = name
        self._image = image
        self._reader = reader
        self._renderer = renderer
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def is_image(self) -> bool:
        """Whether it is one image, which has no pages."""
        return self._image is not None

    def count(self) -> int:
        """Return the number of pages; 1 for an image."""
        return 1 if self._reader is None else self._reader.count()

    def picture(self, page: int | None) -> Picture:
        """Return the pixels of a page.

        Args:
            page: its number, from 1; None for an image, or a document of one page.

        Raises:
            DocumentError: no such page, a page that cannot be read, or several and none named.
        """
        if self._image is not None:
            if page not in (None, 1):
                raise DocumentError(
                    f"{self.name} is one image and has no page {page}; leave the page out."
                )
            return self._image
        assert self._reader is not None
        try:
            return self._drawn(self._reader, page)
        except ImageError as error:
            raise DocumentError(
                f"Page {page or 1} of {self.name} cannot be read: {error}"
            ) from error
        finally:
            if self._closed:  # meanwhile, on another thread: a process may have been started anew
                self.close()

    def close(self) -> None:
        """Free what it holds, and end what is being drawn; safe to call twice, on any thread."""
        self._closed = True
        if self._reader is not None:
            self._reader.close()
        if self._renderer is not None:
            self._renderer.close()

    def _drawn(self, reader: PageReader, page: int | None) -> Picture:
        name = self.name
        if page is None and (count := reader.count()) > 1:
            raise DocumentError(
                f"{name} has {count} pages; name one of them, such as {name}#page=1."
            )
        found = None if page == 0 else reader.page(page or 1)
        if found is None:
            raise DocumentError(f"{name} has no page {page}; its pages are 1 to {reader.count()}.")
        return Picture(found[0])


def open_named(image: Image, name: str, policy: SourcePolicy) -> OpenDocument:
    """Open an image or a document.

    Args:
        image: where it is.
        name: what the caller named it.
        policy: what may be opened.

    Raises:
        SourceError: it cannot be reached, or the policy forbids it.
        ImageError: it is not an image that can be used.
        DocumentError: a damaged document.
        MissingDependencyError: PDFs need ``llavakit[documents]``.
    """
    source = image.source
    try:
        if not isinstance(source, Picture):
            source = _read(image, name, policy)
            if sniff(source) in DOCUMENTS:
                return _opened(source, name, policy)
            return OpenDocument(name, open_isolated(source, policy))
        return OpenDocument(name, open_picture(source, policy))
    except DecodeLimitError as error:
        raise DecodeLimitError(
            f"{name} takes too much time or memory to decode; shrink it, or save it as JPEG or PNG."
        ) from error
    except ImageTooLargeError as error:
        raise ImageTooLargeError(
            f"{name} is too large: an image may have {policy.max_bytes:,} bytes, "
            f"{policy.max_pixels:,} pixels and {policy.max_side:,} along a side."
        ) from error


def _read(image: Image, name: str, policy: SourcePolicy) -> bytes:
    source = image.source
    assert not isinstance(source, Picture)
    address = isinstance(source, str) and "://" in source[:64]
    try:
        return read_source(source, policy, from_url_field=image.from_url_field)
    except (SourceNotAllowedError, SourceNotFoundError) as error:
        if address:
            # One sentence for hosts that may not be asked, that do not exist, and that have no
            # such image, so that the names of a private network cannot be listed.
            raise SourceNotAllowedError(
                f"{name} leads to no image that may be opened from here; name one at a public "
                "address."
            ) from error
        if isinstance(error, SourceNotFoundError):
            raise SourceNotFoundError(f"There is nothing to be found at {name}.") from error
        raise SourceNotAllowedError(
            f"{name} may not be opened from here: it is neither an image that was shown nor a "
            "file in an open folder."
        ) from error
    except SourceFetchError as error:
        raise SourceFetchError(f"{name} could not be read.") from error


def _opened(data: bytes, name: str, policy: SourcePolicy) -> OpenDocument:
    limit = PageLimit(min(MAX_PAGE_PIXELS, policy.max_pixels), policy.max_side)
    # The file may come from a stranger, so PDFs are drawn in a process of their own.
    renderer = Renderer(PAGE_SECONDS)
    try:
        reader = open_reader(data, name, DPI, limit, policy, False, renderer)
    except BaseException:
        renderer.close()
        raise
    return OpenDocument(name, reader=reader, renderer=renderer)
