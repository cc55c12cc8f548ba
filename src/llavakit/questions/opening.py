"""A named picture, or page of a document, opened; what goes wrong is told without secrets.

The one who reads these errors is a model, and through it perhaps a stranger: they hold the
name that it used, and neither paths of this machine nor addresses of its network.
"""

from __future__ import annotations

from llavakit._sniff import sniff
from llavakit.documents._isolated import Renderer
from llavakit.documents.message import DPI, PAGE_SECONDS
from llavakit.documents.pages import MAX_PAGE_PIXELS, PageLimit, PageReader, open_reader
from llavakit.errors import (
    DocumentError,
    ImageError,
    SourceFetchError,
    SourceNotAllowedError,
    SourceNotFoundError,
)
from llavakit.images import Picture, open_picture
from llavakit.sources import SourcePolicy, read_source
from llavakit.values import Image


def open_named(image: Image, page: int | None, name: str, policy: SourcePolicy) -> Picture:
    """The pixels of a picture, or of one page of a document.

    Args:
        image: where it is.
        page: the number of a page, from 1; None for pictures, and documents of one page.
        name: what the model called it.
        policy: what may be opened.

    Raises:
        SourceError: it cannot be reached, or the policy forbids it.
        ImageError: it is no picture that can be used.
        DocumentError: no such page, several pages and none named, or a damaged document.
        MissingDependencyError: PDFs need ``llavakit[documents]``.
    """
    source = image.source
    if not isinstance(source, Picture):
        source = _read(image, name, policy)
        if sniff(source) in ("PDF", "TIFF"):
            return _page(source, page, name, policy)
    if page not in (None, 1):
        raise DocumentError(f"{name} is one picture and has no page {page}; leave the page out.")
    return open_picture(source, policy)


def _read(image: Image, name: str, policy: SourcePolicy) -> bytes:
    source = image.source
    assert not isinstance(source, Picture)
    try:
        return read_source(source, policy, from_url_field=image.from_url_field)
    except SourceNotAllowedError as error:
        raise _closed(name) from error
    except SourceNotFoundError as error:
        if error.__cause__ is not None and _is_address(source):
            # A host that does not exist looks like one that may not be asked, so that nobody
            # can list the names of a private network.
            raise _closed(name) from error
        raise SourceNotFoundError(f"There is nothing to be found at {name}.") from error
    except SourceFetchError as error:
        raise SourceFetchError(f"{name} is there and could not be read.") from error


def _closed(name: str) -> SourceNotAllowedError:
    return SourceNotAllowedError(
        f"{name} may not be opened from here: it is no file in an open folder and no public "
        "address that pictures may come from."
    )


def _is_address(source: object) -> bool:
    return isinstance(source, str) and "://" in source[:64]


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
    found = reader.page(page or 1)
    if found is None:
        raise DocumentError(f"{name} has no page {page}; its pages are 1 to {reader.count()}.")
    return Picture(found[0])
