"""A named image, or page of a document, opened; what goes wrong is told without secrets.

The one who reads these errors is a model, and through it perhaps a stranger: they hold the
name that it used, and neither paths of this machine nor addresses of its network.
"""

from __future__ import annotations

from llavakit.documents._isolated import Renderer
from llavakit.documents.limits import PageLimit
from llavakit.documents.message import DPI, PAGE_SECONDS
from llavakit.documents.pages import MAX_PAGE_PIXELS, open_reader
from llavakit.documents.readers import PageReader
from llavakit.errors import (
    DocumentError,
    ImageError,
    SourceFetchError,
    SourceNotAllowedError,
    SourceNotFoundError,
)
from llavakit.images import Picture, open_picture
from llavakit.sources import SourcePolicy, read_source
from llavakit.sources.formats import sniff
from llavakit.values import Image


def open_named(image: Image, page: int | None, name: str, policy: SourcePolicy) -> Picture:
    """The pixels of an image, or of one page of a document.

    Args:
        image: where it is.
        page: the number of a page, from 1; None for images, and documents of one page.
        name: what the model called it.
        policy: what may be opened.

    Raises:
        SourceError: it cannot be reached, or the policy forbids it.
        ImageError: it is no image that can be used.
        DocumentError: no such page, several pages and none named, or a damaged document.
        MissingDependencyError: PDFs need ``llavakit[documents]``.
    """
    source = image.source
    if not isinstance(source, Picture):
        source = _read(image, name, policy)
        if sniff(source) in ("PDF", "TIFF"):
            return _page(source, page, name, policy)
    if page not in (None, 1):
        raise DocumentError(f"{name} is one image and has no page {page}; leave the page out.")
    return open_picture(source, policy)


def _read(image: Image, name: str, policy: SourcePolicy) -> bytes:
    source = image.source
    assert not isinstance(source, Picture)
    address = isinstance(source, str) and "://" in source[:64]
    try:
        return read_source(source, policy, from_url_field=image.from_url_field)
    except (SourceNotAllowedError, SourceNotFoundError) as error:
        if address:
            # One sentence for hosts that may not be asked, that do not exist, and that have no
            # such image, so that nobody can list the names of a private network.
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


def _page(data: bytes, page: int | None, name: str, policy: SourcePolicy) -> Picture:
    limit = PageLimit(min(MAX_PAGE_PIXELS, policy.max_pixels), policy.max_side)
    # Whoever chose the file, it may be a stranger's: PDFs are drawn in a process of their own.
    renderer = Renderer(PAGE_SECONDS)
    try:
        reader = open_reader(data, name, DPI, limit, policy, False, renderer)
        try:
            return _drawn(reader, page, name)
        except ImageError as error:
            raise DocumentError(f"Page {page or 1} of {name} cannot be read: {error}") from error
        finally:
            reader.close()
    finally:
        renderer.close()


def _drawn(reader: PageReader, page: int | None, name: str) -> Picture:
    if page is None and (count := reader.count()) > 1:
        raise DocumentError(f"{name} has {count} pages; name one of them, such as {name}#page=1.")
    found = None if page == 0 else reader.page(page or 1)
    if found is None:
        raise DocumentError(f"{name} has no page {page}; its pages are 1 to {reader.count()}.")
    return Picture(found[0])
