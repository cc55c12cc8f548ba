"""Pages of a PDF, rendered by pdfium (pypdfium2, BSD/Apache).

pdfium is not thread-safe, not even between documents: every call into it is made under one
lock. The lock is re-entrant, because an abandoned reader may be closed by the garbage
collector while the same thread is inside pdfium.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from llavakit.documents._pdf_text import read_layer
from llavakit.documents.passwords import encrypted
from llavakit.errors import DocumentError, LlavaKitError, MissingDependencyError

if TYPE_CHECKING:
    from PIL import Image as PILImage

    from llavakit.documents.limits import PageLimit
    from llavakit.documents.text_layer import TextLayer

_PDFIUM = threading.RLock()
_POINTS_PER_INCH = 72
_MOST_ATTACHED = 10_000
_XFA_FULL = 2  # FPDF_GetFormType: the pages themselves are made by the form's program


class PdfReader:
    """An open PDF (see :class:`~llavakit.documents.pages.PageReader`)."""

    spent = ""

    def __init__(
        self,
        data: bytes,
        name: str,
        dpi: float,
        limit: PageLimit,
        text: bool,
        password: str | None = None,
    ) -> None:
        self._data = data
        self._name = name
        self._dpi = dpi
        self._limit = limit
        self._text = text
        self._password = password
        self._document: Any = None
        self._flattened: Any = None
        with self._rendering("The structure"):
            self._document = self._opened()
            self._count = len(self._document)
            if self._count < 1:
                self.close()
                raise DocumentError(f"{name} has no pages.")
            self._document.init_forms()  # so that what is filled in is drawn
            self._is_xfa = self._document.get_formtype() == _XFA_FULL

    def count(self) -> int:
        return self._count

    def page(self, number: int) -> tuple[PILImage.Image, TextLayer | None] | None:
        if number > self._count:
            return None
        if self._is_xfa:
            raise DocumentError(
                f'Page {number} of {self._name} is the placeholder of an XFA form ("Please wait'
                "...\"), whose contents only Adobe's programs draw; print the form to a PDF there."
            )
        with self._rendering(f"Page {number}"):
            page = self._document[number - 1]
            try:
                image = self._render(page, number)
                return image, self._layer(page, number, image) if self._text else None
            finally:
                page.close()

    def attachments(self) -> list[str]:
        """The names of the files that are attached to it."""
        with self._rendering("The list of attachments"):
            count = min(self._document.count_attachments(), _MOST_ATTACHED)
            found = [self._document.get_attachment(at) for at in range(count)]
            return [one.get_name().replace("\0", "") for one in found]

    def attachment(self, index: int) -> bytes:
        """The content of an attached file."""
        with self._rendering(f"Attachment {index + 1}"):
            return bytes(self._document.get_attachment(index).get_data())

    def close(self) -> None:
        with _PDFIUM:
            for document in (self._document, self._flattened):
                if document is not None:
                    document.close()
            self._document = self._flattened = None

    def _opened(self) -> Any:
        pdfium = _pypdfium2()
        try:
            return pdfium.PdfDocument(self._data, password=self._password)
        except pdfium.PdfiumError as error:
            self.close()
            if "password" in str(error).lower():
                raise encrypted(self._name, self._password) from error
            if "security" in str(error).lower():
                raise DocumentError(
                    f"{self._name} is encrypted in a way that is not known here; save it without "
                    "encryption first."
                ) from error
            raise DocumentError(
                f"{self._name} is damaged or not a PDF; open and save it again."
            ) from error

    def _render(self, page: Any, number: int) -> PILImage.Image:
        width, height = page.get_size()
        if not (0 < width < math.inf and 0 < height < math.inf):
            raise DocumentError(f"Page {number} of {self._name} has no usable size.")
        scale = self._limit.scale(width, height, self._dpi / _POINTS_PER_INCH)
        bitmap = page.render(scale=scale, rev_byteorder=True)
        try:
            # Mode RGB; copied, because the bitmap's memory goes when it is closed.
            image: PILImage.Image = bitmap.to_pil().convert("RGB").copy()
            return image
        finally:
            bitmap.close()

    def _layer(self, page: Any, number: int, image: PILImage.Image) -> TextLayer:
        """The text, with what annotations and fields of forms show: as it is in the pixels.

        They are flattened in a copy of the document, so that the page is drawn as it was.
        """
        import pypdfium2.raw as pdfium

        own_objects = pdfium.FPDFPage_CountObjects(page)
        if pdfium.FPDFPage_GetAnnotCount(page) < 1:
            return read_layer(page, own_objects, image)
        if self._flattened is None:
            self._flattened = self._opened()
            self._flattened.init_forms()
        copy = self._flattened[number - 1]
        _hide_unseen(pdfium, copy)
        done = pdfium.FPDFPage_Flatten(copy, pdfium.FLAT_NORMALDISPLAY)
        copy.close()
        if done != pdfium.FLATTEN_SUCCESS:
            return read_layer(page, own_objects, image)
        copy = self._flattened[number - 1]
        try:
            return read_layer(copy, own_objects, image)
        finally:
            copy.close()

    @contextmanager
    def _rendering(self, what: str) -> Iterator[None]:
        """The lock, and the border where pdfium's errors become ours."""
        with _PDFIUM:
            try:
                yield
            except LlavaKitError:
                raise
            except MemoryError as error:
                raise DocumentError(
                    f"{what} of {self._name} needs more memory than there is; lower dpi."
                ) from error
            except Exception as error:  # pypdfium2 raises its own, ctypes' and built-in types
                raise DocumentError(
                    f"{what} of {self._name} is damaged ({str(error)[:80]}); leave it out, or open "
                    "and save the document again."
                ) from error


def _hide_unseen(pdfium: Any, page: Any) -> None:
    """Hides the annotations that are only printed, which flattening would show."""
    for at in range(pdfium.FPDFPage_GetAnnotCount(page)):
        annotation = pdfium.FPDFPage_GetAnnot(page, at)
        if not annotation:
            continue
        flags = pdfium.FPDFAnnot_GetFlags(annotation)
        if flags & pdfium.FPDF_ANNOT_FLAG_NOVIEW:
            pdfium.FPDFAnnot_SetFlags(annotation, flags | pdfium.FPDF_ANNOT_FLAG_HIDDEN)
        pdfium.FPDFPage_CloseAnnot(annotation)


def _pypdfium2() -> Any:
    try:
        import pypdfium2
    except ImportError as error:
        raise MissingDependencyError(
            'PDFs need pypdfium2; install it with: pip install "llavakit[documents]".'
        ) from error
    return pypdfium2
