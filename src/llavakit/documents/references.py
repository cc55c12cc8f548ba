"""Where a page's image is found again: what an index keeps of a page, and nothing of its pixels.

An index keeps text and small metadata. A :class:`PageReference` says in JSON where the image
is: its digest in a :class:`~llavakit.documents.PageStore`, a file, or the document itself, from
which the page is drawn again. Whatever way it comes back, it is the same image or an error.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from llavakit._checks import checked, members
from llavakit.documents.attachments import outermost
from llavakit.documents.files import read_documents
from llavakit.documents.folders import Document, Failure
from llavakit.documents.names import label_of
from llavakit.documents.pages import Page
from llavakit.documents.passwords import Password
from llavakit.documents.ranges import PageRange
from llavakit.documents.store import PageStore
from llavakit.documents.view import View
from llavakit.errors import DocumentError, ImageError, SourceError
from llavakit.images import Picture, open_picture
from llavakit.sources import DEFAULT_POLICY, SourcePolicy

_VIEW = View()


@checked
@dataclass(frozen=True, slots=True)
class PageReference:
    """A page without its pixels.

    Attributes:
        source: the document's path or address. A path is absolute, because the page
            may be looked up again from another directory.
        number: the page's number; the first is 1.
        sha256: the digest of its image.
        size: width and height in pixels.
        dpi, max_pixels: how the image was drawn, so that it can be drawn again.
        image_path: a file that holds the image, if there is one.
    """

    source: str
    number: int
    sha256: str
    size: tuple[int, int]
    dpi: float = _VIEW.dpi
    max_pixels: int = _VIEW.max_pixels
    image_path: str | None = None

    @classmethod
    @checked
    def of(cls, page: Page, view: View | None = None, store: PageStore | None = None) -> Self:
        """The reference of a page.

        Args:
            page: a page.
            view: how it was drawn; None is the default of ``open_files``.
            store: where to keep its image; None keeps it nowhere.

        Raises:
            SourceFetchError: it cannot be written into the store.
        """
        view = view or _VIEW
        kept = None if store is None else str(store.put(page.picture).absolute())
        source = _lasting(page.source)
        return cls(source, page.number, page.digest, page.size, view.dpi, view.max_pixels, kept)

    def metadata(self) -> dict[str, Any]:
        """The reference as a flat dictionary of strings and numbers, as vector stores keep it."""
        known = {
            "source": self.source,
            "page": self.number,
            "page_label": str(self.number),
            "sha256": self.sha256,
            "width": self.size[0],
            "height": self.size[1],
            "dpi": self.dpi,
            "max_pixels": self.max_pixels,
        }
        return known if self.image_path is None else {**known, "image_path": self.image_path}

    @classmethod
    @checked
    def from_metadata(cls, metadata: Mapping[str, Any]) -> Self:
        """The reference that a dictionary holds, as it came back from a vector store.

        Stores may give numbers back as floats or strings; other keys are of no concern.

        Raises:
            DocumentError: it holds none.
        """
        try:
            path = metadata.get("image_path")
            return cls(
                source=str(metadata["source"]),
                number=int(metadata["page"]),
                sha256=str(metadata["sha256"]),
                size=(int(metadata["width"]), int(metadata["height"])),
                dpi=float(metadata.get("dpi") or _VIEW.dpi),
                max_pixels=int(metadata.get("max_pixels") or _VIEW.max_pixels),
                image_path=str(path) if path else None,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise DocumentError(
                f"These metadata name no page image ({type(error).__name__}: {error}); index "
                "the document with llavakit's page loader or reader."
            ) from error


def _lasting(source: str) -> str:
    if "://" in source:
        return source
    try:
        return str(Path(source).absolute()) if Path(outermost(source)).exists() else source
    except (OSError, ValueError):  # no path, but words for a document without a name
        return source


@checked
def reopen(
    references: Iterable[PageReference] | PageReference,
    *,
    store: PageStore | None = None,
    policy: SourcePolicy = DEFAULT_POLICY,
    page_seconds: float | None = 30.0,
    password: Password = None,
) -> list[Page]:
    """The pages of references, in their order, each with the image that was indexed.

    An image is looked for in the store, then in its file, and is drawn again from its document
    where it is in neither.

    Args:
        references: pages of any documents, or one.
        store: images by their digest.
        policy: which files and addresses may be opened.
        page_seconds: most seconds for drawing a page (see :func:`open_files`).
        password: what opens encrypted documents (see :func:`open_files`).

    Raises:
        DocumentError: a page looks different now, or its document is not there any more.
        ParameterError: a reference that is none.
        SourceNotAllowedError: the policy forbids the only place that it could come from.
    """
    if isinstance(references, PageReference):
        references = [references]
    wanted: list[PageReference] = members("references", references, PageReference)
    found = {one: _kept(one, store, policy) for one in wanted}
    missing = [one for one, picture in found.items() if picture is None]
    found.update(_drawn(missing, policy, page_seconds, password))
    pictures = [(one, found[one]) for one in wanted]
    return [Page(one.source, one.number, picture) for one, picture in pictures if picture]


def _kept(
    reference: PageReference, store: PageStore | None, policy: SourcePolicy
) -> Picture | None:
    picture = None if store is None else store.get(reference.sha256)
    if picture is not None or reference.image_path is None:
        return picture
    try:
        picture = open_picture(Path(reference.image_path), policy)
    except (SourceError, ImageError):
        return None  # the document itself may still be there, and allowed
    return picture if picture.digest == reference.sha256 else None


def _drawn(
    references: Sequence[PageReference],
    policy: SourcePolicy,
    page_seconds: float | None,
    password: Password,
) -> dict[PageReference, Picture]:
    """The images of pages from their documents; each document is opened once a view."""
    groups: dict[tuple[str, View], list[PageReference]] = {}
    for one in references:
        view = View(one.dpi, one.max_pixels, page_seconds=page_seconds)
        groups.setdefault((one.source, view), []).append(one)
    drawn = {}
    for (source, view), group in groups.items():
        numbers = sorted({one.number for one in group})
        document = Document(source, PageRange(tuple((number, number) for number in numbers)))
        opened = read_documents([document], view, policy, password)
        pages = {page.number: page for page in opened}
        for one in group:
            drawn[one] = _same(one, pages.get(one.number) or pages.get(None))
    return drawn


def _same(reference: PageReference, page: Page | Failure | None) -> Picture:
    label = f"Page {reference.number} of {label_of(reference.source)}"
    if isinstance(page, Failure):
        error = page.error
        if isinstance(error, DocumentError):
            raise error
        kind = type(error) if isinstance(error, SourceError) else DocumentError
        raise kind(f"{label} cannot be opened again: {error}") from error
    if page is None or page.digest != reference.sha256:
        raise DocumentError(
            f"{label} is not the page that was indexed any more; index the document anew, or keep "
            "its images in a PageStore."
        )
    return page.picture
