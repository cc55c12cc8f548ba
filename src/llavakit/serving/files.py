"""PDFs of a request, drawn as images: in a process of their own, in bounded time.

A page of ten short objects can keep a renderer busy for hours, so what a stranger sends is drawn
where it can be ended (:mod:`llavakit.documents._isolated`).
"""

from __future__ import annotations

import time
from collections.abc import Callable

from llavakit.documents._isolated import Renderer
from llavakit.documents.limits import PageLimit
from llavakit.documents.message import DPI
from llavakit.documents.pages import MAX_PAGE_PIXELS, open_reader
from llavakit.documents.readers import PageReader
from llavakit.errors import (
    DocumentError,
    ImageError,
    MissingDependencyError,
    PasswordError,
    RenderError,
)
from llavakit.images import Picture
from llavakit.serving.errors import Refusal
from llavakit.sources import SourcePolicy
from llavakit.sources.formats import ALLOWED, sniff

FILE_SECONDS = 60.0
"""Most seconds for all pages of a document together."""


def pages_of(
    data: bytes,
    name: str,
    most: int,
    policy: SourcePolicy,
    hold: Callable[[int], None],
    seconds: float | None = None,
) -> list[Picture]:
    """Draw all pages of a PDF.

    Args:
        data: of the file.
        name: what the client calls it.
        most: most pages.
        policy: caps on the pixels of a page.
        hold: called with the bytes that each page takes, once it is drawn; may raise.
        seconds: for the whole document; None is :data:`FILE_SECONDS`.

    Raises:
        Refusal: it is not a PDF, has too many pages, is damaged or encrypted, or takes too long.
    """
    _check_kind(data, name)
    seconds = seconds or FILE_SECONDS
    end = time.monotonic() + seconds
    limit = PageLimit(min(MAX_PAGE_PIXELS, policy.max_pixels), policy.max_side)
    renderer = Renderer(seconds)
    try:
        reader = open_reader(data, name, DPI, limit, policy, False, renderer)
        try:
            return _rendered(reader, name, most, hold, end, renderer)
        finally:
            reader.close()
    except MissingDependencyError as error:
        raise _invalid(
            f"{name} is a PDF, and this server opens none; send its pages as images."
        ) from error
    except PasswordError as error:
        raise _invalid(f"{name} is encrypted; send it without a password.") from error
    except RenderError as error:
        raise _too_large(
            f"{name} takes more than {seconds:g} seconds, or too much memory, to draw; send its "
            "pages as images."
        ) from error
    except (DocumentError, ImageError) as error:
        raise _invalid(f"{name} cannot be read: {error}") from error
    finally:
        renderer.close()


def _rendered(
    reader: PageReader,
    name: str,
    most: int,
    hold: Callable[[int], None],
    end: float,
    renderer: Renderer,
) -> list[Picture]:
    count = reader.count()
    if count > most:
        raise _too_large(
            f"{name} has {count} pages, and this request may have {most} more; send a part of it.",
            code="too_many_images",
        )
    pictures = []
    for number in range(1, count + 1):
        renderer.seconds = end - time.monotonic()
        if renderer.seconds <= 0:
            raise RenderError(f"{name} takes too long.")
        found = reader.page(number)
        if found is None:
            raise DocumentError(f"it declares {count} pages and has {number - 1}.")
        width, height = found[0].size
        hold(3 * width * height)
        pictures.append(Picture(found[0]))
    return pictures


def _check_kind(data: bytes, name: str) -> None:
    kind = sniff(data)
    if kind == "PDF":
        return
    if kind in ALLOWED:
        raise _invalid(f"{name} is an image ({kind}); send it in a block for images.")
    raise _invalid(f"{name} is not a PDF, and no other files are read; send text as text.")


def _invalid(message: str) -> Refusal:
    return Refusal(400, message, code="invalid_file")


def _too_large(message: str, code: str = "file_too_large") -> Refusal:
    return Refusal(413, message, code=code)
