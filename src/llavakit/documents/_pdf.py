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

from llavakit.errors import DocumentError, LlavaKitError, MissingDependencyError

if TYPE_CHECKING:
    from PIL import Image as PILImage

    from llavakit.documents.limits import PageLimit

_PDFIUM = threading.RLock()
_POINTS_PER_INCH = 72


class PdfReader:
    """An open PDF (see :class:`~llavakit.documents.pages.PageReader`)."""

    def __init__(self, data: bytes, name: str, dpi: float, limit: PageLimit, text: bool) -> None:
        self._name = name
        self._dpi = dpi
        self._limit = limit
        self._text = text
        self._document: Any = None
        with self._rendering("The structure"):
            pdfium = _pypdfium2()
            try:
                self._document = pdfium.PdfDocument(data)
                self._count = len(self._document)
            except pdfium.PdfiumError as error:
                self.close()
                if "password" in str(error).lower():
                    raise DocumentError(
                        f"{name} is encrypted; save it without a password first."
                    ) from error
                raise DocumentError(
                    f"{name} is damaged or not a PDF; open and save it again."
                ) from error
            if self._count < 1:
                self.close()
                raise DocumentError(f"{name} has no pages.")
            self._document.init_forms()  # so that what is filled in is drawn

    def count(self) -> int:
        return self._count

    def page(self, number: int) -> tuple[PILImage.Image, str | None] | None:
        if number > self._count:
            return None
        with self._rendering(f"Page {number}"):
            page = self._document[number - 1]
            try:
                return self._render(page, number), self._text_of(page)
            finally:
                page.close()

    def close(self) -> None:
        with _PDFIUM:
            if self._document is not None:
                self._document.close()
                self._document = None

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

    def _text_of(self, page: Any) -> str | None:
        if not self._text:
            return None
        layer = page.get_textpage()
        try:
            text: str = layer.get_text_bounded()
        finally:
            layer.close()
        # pdfium marks a hyphen at a line's end by a noncharacter.
        return text.replace("\r\n", "\n").replace("\ufffe", "-").replace("\0", "")

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


def _pypdfium2() -> Any:
    try:
        import pypdfium2
    except ImportError as error:
        raise MissingDependencyError(
            'PDFs need pypdfium2; install it with: pip install "llavakit[documents]".'
        ) from error
    return pypdfium2
