"""A document inside a message."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from llavakit._checks import check_integer, checked
from llavakit.documents._isolated import Renderer
from llavakit.documents.limits import PageLimit
from llavakit.documents.names import name_of
from llavakit.documents.pages import MAX_PAGE_PIXELS, Page, open_reader
from llavakit.documents.passwords import Password, for_document
from llavakit.documents.readers import PageReader
from llavakit.errors import DocumentError, ImageError
from llavakit.images import Picture
from llavakit.sources import DEFAULT_POLICY, SourcePolicy, read_source
from llavakit.values import Image, Part

DPI = 144
PAGE_SECONDS = 30.0
"""Most seconds for opening a PDF, and for drawing each page."""


@dataclass(frozen=True, slots=True)
class Attachment:
    """A document in a message; ``source`` says where it is, or holds it."""

    source: Image


OpenAttachment: TypeAlias = Callable[[Attachment], Sequence[Part]]
"""Gives the pages of an attachment as images."""


def page_images(attachment: Attachment, most: int, policy: SourcePolicy) -> list[Image]:
    """The pages of an attachment as images; arguments and errors as :func:`message_pages`."""
    return [Image(page.picture) for page in message_pages(attachment.source, most, policy)]


@checked
def message_pages(
    source: Image,
    most: int,
    policy: SourcePolicy = DEFAULT_POLICY,
    *,
    password: Password = None,
) -> list[Page]:
    """All pages of a document that stands in a message.

    Messages come from strangers, so that a PDF is drawn in a process of its own (see
    :mod:`llavakit.documents._isolated`).

    Args:
        source: the document as it stands in the message: where it is, or its content.
        most: most pages; each is an image of hundreds of tokens.
        policy: what may be opened.
        password: what opens it if it is encrypted (see
            :func:`~llavakit.documents.open_files`).

    Raises:
        PasswordError: it is encrypted, and this does not open it.
        DocumentError: more pages than that, encrypted, damaged, or too long in drawing.
        SourceError: it cannot be reached, or the policy forbids it.
        MissingDependencyError: PDFs need ``llavakit[documents]``.
    """
    check_integer("most", most, least=1)
    held = source.source
    if not isinstance(held, Picture):
        held = read_source(held, policy, from_url_field=source.from_url_field)
    limit = PageLimit(min(MAX_PAGE_PIXELS, policy.max_pixels), policy.max_side)
    renderer = Renderer(PAGE_SECONDS)
    try:
        known = for_document(password, name_of(source.source))
        reader = open_reader(held, "the document", DPI, limit, policy, False, renderer, known)
        try:
            return _all_pages(reader, most)
        finally:
            reader.close()
    finally:
        renderer.close()


def _all_pages(reader: PageReader, most: int) -> list[Page]:
    declared = reader.count()
    if declared > most:
        raise DocumentError(
            f"The document has {declared} pages and a message takes {most}; raise max_pages, or "
            "open the pages that matter with llavakit.documents.open_pages and send those."
        )
    pages = []
    for number in range(1, declared + 1):
        try:
            found = reader.page(number)
        except ImageError as error:
            raise DocumentError(f"Page {number} of the document cannot be read: {error}") from error
        if found is None:
            raise DocumentError(f"The document declares {declared} pages and has {number - 1}.")
        pages.append(Page("the document", number, Picture(found[0])))
    return pages
