"""Nodes of the pages that a reader finds, by their own text or by what a model read."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llavakit.documents import Failure, Page, PageReference, PageStore, Reading, TextLayer, View
from llavakit.documents.attachments import outermost
from llavakit.documents.names import label_of
from llavakit.documents.text_layer import with_layer
from llavakit.errors import DocumentError, InputError, LlavaKitError
from llavakit.llama_index.pages import PageNode, PageOpening, page_node

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PageNodes:
    """How pages become nodes."""

    view: View
    store: PageStore | None
    extra: Mapping[str, Any]
    opening: PageOpening | None = None

    def of_layer(self, item: Page | Failure) -> PageNode | Failure:
        """The node of a page that has its own text."""
        if isinstance(item, Failure):
            return item
        text = (item.text or "").strip()
        if not text:
            return Failure(
                item.source,
                item.number,
                DocumentError(
                    f"Page {item.number} of {label_of(item.source)} has no text to be found by; "
                    "give the reader a model that reads it: llm=LLaVA(...)."
                ),
            )
        known = self.reference(item)
        return known if isinstance(known, Failure) else self._node(known, text)

    def of_reading(
        self, reference: PageReference, layer: TextLayer | None, reading: Reading
    ) -> PageNode | Failure:
        """The node of a page that the model read, with the words that the page itself holds."""
        if reading.error is not None:
            return Failure(reading.source, reading.page, _as_input_error(reading.error, reference))
        label = f"Page {reference.number} of {label_of(reference.source)}"
        if reading.finish_reason == "length":
            _logger.warning("%s was not read to its end; raise max_tokens of the Task.", label)
        # The framework silently leaves nodes without a text out of indices.
        text = _said(reading, layer) or f"{label} (nothing to read)"
        node = self._node(reference, text)
        if reading.confidence is not None:
            known = reading.confidence.metadata()
            node.metadata |= known
            node.excluded_embed_metadata_keys += list(known)
            node.excluded_llm_metadata_keys += list(known)
        return node

    def _node(self, reference: PageReference, text: str) -> PageNode:
        return page_node(reference, text, self.extra, self.opening)

    def reference(self, page: Page) -> PageReference | Failure:
        """Where the page is found again; its image is in the store from now on."""
        source = _placed(page.source)
        if source is None and self.store is None:
            return Failure(
                page.source,
                page.number,
                DocumentError(
                    f"{label_of(page.source)} has no path, so that its pages cannot be found "
                    "again; keep their images with store=."
                ),
            )
        known = PageReference.of(page, self.view, self.store)
        return known if source is None else replace(known, source=source)


def _placed(name: str) -> str | None:
    """A document's name as it can be opened from anywhere; None if it cannot."""
    if "://" in name:
        return name
    return str(Path(name).absolute()) if Path(outermost(name)).is_file() else None


def _said(reading: Reading, layer: TextLayer | None) -> str:
    if reading.data is not None:
        return json.dumps(reading.data, ensure_ascii=False)
    return with_layer((reading.text or "").strip(), layer)


def _as_input_error(error: LlavaKitError, reference: PageReference) -> InputError:
    if isinstance(error, InputError):
        return error
    failure = DocumentError(
        f"Page {reference.number} of {label_of(reference.source)} could not be read: {error}"
    )
    failure.__cause__ = error
    return failure
