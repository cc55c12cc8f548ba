"""``PageImageParser``: a model that reads blobs, for LangChain's loaders of documents."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

from langchain_core.document_loaders import BaseBlobParser
from langchain_core.documents import Document
from langchain_core.documents.base import Blob

from llavakit._checks import checked
from llavakit.documents import Failure, Page, PageStore, View, open_files
from llavakit.documents.pages import MAX_PAGE_PIXELS
from llavakit.documents.passwords import Password, for_document
from llavakit.errors import ImageDecodeError, ImageError, InputError, UnsupportedImageError
from llavakit.images import open_picture
from llavakit.images.guards import check_size
from llavakit.langchain.page_documents import (
    FILE_PATH,
    Documents,
    Model,
    OnError,
    PageDocuments,
    PageText,
    Skipped,
    takes_layer,
)
from llavakit.langchain.page_loader import to_store
from llavakit.sources import DEFAULT_POLICY, SourcePolicy, read_file

_NPY = b"\x93NUMPY"
_SOMEWHERE = "the document"


class PageImageParser(BaseBlobParser):
    """Blobs of images, PDFs and TIFFs -> documents with what a model reads in them.

    LangChain's loaders of PDFs take it as ``images_parser``, so that images inside a PDF
    become text. They hand over encoded images, or arrays as ``application/x-npy``; one
    image gives one document, always. A PDF or TIFF gives one a page, so the parser fits
    ``GenericLoader`` too. The type of a blob is detected from its bytes; the declared one is
    ignored.

    >>> parser = PageImageParser(ChatLLaVA(model="demo"))
    >>> next(parser.lazy_parse(Blob.from_path("scan.png"))).page_content  # doctest: +SKIP

    A loader calls it with one image at a time, so nothing can be batched. For folders of
    scans, :class:`~llavakit.langchain.PageImageLoader` is several times faster.

    Args:
        model: who reads: a ``ChatLLaVA``, an ``LLaVALLM`` or a backend.
        text, store, dpi, max_pixels, page_seconds, policy, password: as for
            :class:`~llavakit.langchain.PageImageLoader`; ``text`` is ``"transcribe"`` here.
            Passwords are found by the blob's source.
        on_error: ``"raise"``, or ``"skip"``: a blob that cannot be read is logged and collected
            in :attr:`skipped`, and gives one document without text whose metadata have the
            error, because loaders count on one.

    Raises:
        ParameterError: values that make no sense, or a task without a model.
    """

    @checked
    def __init__(
        self,
        model: Model | None = None,
        *,
        text: PageText = "transcribe",
        store: PageStore | str | os.PathLike[str] | None = None,
        dpi: float = 144,
        max_pixels: int = MAX_PAGE_PIXELS,
        on_error: OnError = "raise",
        page_seconds: float | None = 30.0,
        policy: SourcePolicy = DEFAULT_POLICY,
        password: Password = None,
    ) -> None:
        self._policy = policy
        self._password = password
        view = View(dpi, max_pixels, takes_layer(text), page_seconds)
        self._making = PageDocuments(text, model, to_store(store), on_error, view)

    @property
    def skipped(self) -> list[Skipped]:
        """What was left out since the object was made, if errors are skipped."""
        return self._making.skipped

    @checked
    def lazy_parse(self, blob: Blob) -> Iterator[Document]:
        """The documents of a blob: one for an image, one a page for a PDF or TIFF.

        Raises:
            InputError: it cannot be read, unless errors are skipped.
            EngineError, ModelError: the model failed.
        """
        return self._parse(blob)

    def _parse(self, blob: Blob) -> Documents:
        found = False
        before = len(self._making.skipped)
        with closing(self._making.of(self._pages(blob))) as documents:
            for document in documents:
                found = True
                document.metadata = {**blob.metadata, **document.metadata}
                if blob.path:
                    document.metadata[FILE_PATH] = str(blob.path)
                yield document
        if not found:
            reasons = [f"{type(one.error).__name__}: {one.error}" for one in self.skipped[before:]]
            known = {**blob.metadata, "source": blob.source or _SOMEWHERE}
            yield Document("", metadata={**known, "error": " ".join(reasons)})

    def _pages(self, blob: Blob) -> Iterator[Page | Failure]:
        name = blob.source or _SOMEWHERE
        try:
            content = self._content(blob)
        except InputError as error:
            yield Failure(name, None, error)
            return
        view = self._making.view
        pages = open_files(
            [content],
            dpi=view.dpi,
            max_pixels=view.max_pixels,
            text=view.text,
            page_seconds=view.page_seconds,
            policy=self._policy,
            password=for_document(self._password, name),
        )
        with closing(pages):
            for page in pages:
                yield replace(page, source=name)

    def _content(self, blob: Blob) -> Any:
        """The bytes of a blob, or the image that its array is."""
        if isinstance(blob.data, str):
            raise UnsupportedImageError(
                "The blob holds text; give it to a parser of texts, or pass the image's bytes."
            )
        data = blob.data
        if data is None:
            data = read_file(Path(str(blob.path)), self._policy)
        return open_array(data, self._policy) if data.startswith(_NPY) else data


def open_array(data: bytes, policy: SourcePolicy) -> Any:
    """The image that a saved numpy array is (``.npy``, as ``np.save`` writes it).

    The header is compared with the bytes that are there before anything is allocated, and
    pickled objects are never read.

    Args:
        data: (H, W), (H, W, 1), (H, W, 2: grey and alpha), (H, W, 3) or (H, W, 4: RGBA), see
            :func:`~llavakit.images.open_picture`.
        policy: the caps on pixels and sides.

    Raises:
        ImageError: damaged, too large, or no image.
    """
    import numpy as np
    from numpy.lib import format as npy

    file = BytesIO(data)
    try:
        version = npy.read_magic(file)
        read_header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
        shape, _, dtype = read_header[version](file)
        size = int(np.prod(shape, dtype=object)) * dtype.itemsize
        if dtype.hasobject or size > len(data) - file.tell():
            raise ImageDecodeError(
                "The array holds objects, or less than its header says; save it again with "
                "np.save(file, pixels, allow_pickle=False)."
            )
        if len(shape) >= 2:
            check_size((int(shape[1]), int(shape[0])), policy)
        array = np.load(BytesIO(data), allow_pickle=False)
    except ImageError:
        raise
    except Exception as error:  # numpy parses the header with Python's own parser
        raise ImageDecodeError(
            f"The array is damaged ({type(error).__name__}); save it again with np.save."
        ) from error
    if array.ndim == 3 and array.shape[2] == 2:
        array = array[:, :, [0, 0, 0, 1]]
    return open_picture(array, policy)
