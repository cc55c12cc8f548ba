"""Pages as nodes: what an index keeps of a page, and the page again from what it kept.

A node of a page is an ``ImageNode`` whose metadata are those of a
:class:`~llavakit.documents.PageReference`, beside the names that the framework's readers use.
Stores keep them, whatever else they lose; text splitters pass them on to the pieces of a page.
"""

from __future__ import annotations

import hashlib
import json
import logging
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

from llama_index.core.schema import (
    BaseNode,
    ImageNode,
    NodeRelationship,
    RelatedNodeInfo,
)

from llavakit.documents import Failure, Page, PageReference, PageStore, Reading, View
from llavakit.documents.folders import SUFFIXES
from llavakit.documents.pages import label_of
from llavakit.errors import DocumentError, InputError, LlavaKitError, ParameterError

_logger = logging.getLogger(__name__)

OnError: TypeAlias = Literal["raise", "skip"]

_NAMES = ("file_name", "file_path")
_REFERENCE = frozenset(PageReference("", 1, "", (1, 1), image_path=" ").metadata())
_PICTURES = SUFFIXES - {".pdf", ".tif", ".tiff"}
_IDS = uuid.UUID("6f1c3d52-6a53-5a0b-9c70-3f1f8f6b1d0e")  # ours alone: any fixed one would do


class PageNode(ImageNode):
    """A page before it is in a store; afterwards it is an ``ImageNode`` as any other.

    It is its own source document, as pages are to the framework's own readers, so that stores
    can delete it by its id. Its hash tells of the picture: a page that was drawn anew with the
    same words is a changed one.
    """

    @property
    def source_node(self) -> RelatedNodeInfo | None:
        """The document that it comes from: itself, unless somebody says otherwise."""
        if NodeRelationship.SOURCE in self.relationships:
            return super().source_node
        return RelatedNodeInfo(node_id=self.node_id)

    @property
    def hash(self) -> str:
        """Changes with the text and with the picture."""
        return hashlib.sha256(f"{super().hash}-{self.metadata['sha256']}".encode()).hexdigest()


def checked_extra(extra: Mapping[str, Any]) -> dict[str, Any]:
    """Further metadata for pages.

    Raises:
        ParameterError: they have a key of a page's reference.
    """
    taken = sorted(_REFERENCE & extra.keys())
    if taken:
        raise ParameterError(
            f"extra_info has the key {taken[0]!r}, which the reader writes itself; name it "
            "otherwise."
        )
    return dict(extra)


def page_node(reference: PageReference, text: str, extra: Mapping[str, Any]) -> PageNode:
    """The node of a page.

    Args:
        reference: the page.
        text: what it is found by.
        extra: further metadata (see :func:`checked_extra`).
    """
    # Stores of tables want the same keys with the same types in every row.
    kept = {**reference.metadata(), "dpi": float(reference.dpi)}
    kept["image_path"] = reference.image_path or _own_picture(reference.source) or ""
    names = {"file_name": Path(reference.source).name, "file_path": reference.source}
    return PageNode(  # type: ignore[call-arg]  # the framework's own constructor hides the fields
        id_=_stable_id(reference),
        text=text,
        image_path=kept["image_path"] or None,
        metadata={**names, **extra, **kept},
        excluded_embed_metadata_keys=[*_NAMES, *sorted(_REFERENCE)],
        excluded_llm_metadata_keys=["file_path", *sorted(_REFERENCE - {"page_label"})],
    )


def reference_of(node: BaseNode) -> PageReference | None:
    """The page that a node (or a piece of its text) stands for; None if it is no page's.

    Raises:
        DocumentError: the metadata are damaged.
    """
    if not {"source", "page", "sha256", "width", "height"} <= node.metadata.keys():
        return None
    return PageReference.from_metadata(node.metadata)


def to_store(store: Any) -> Any:
    """A store of a folder's name; anything else as it is."""
    return PageStore(store) if isinstance(store, (str, Path)) else store


def node_label(node: BaseNode) -> str:
    """A node in a few words: its file and page."""
    name = node.metadata.get("file_name") or node.metadata.get("file_path") or node.node_id
    page = node.metadata.get("page_label")
    return str(name) if page is None else f"page {page} of {name}"


def _stable_id(reference: PageReference) -> str:
    """The same for the same place, so that a page that is indexed again replaces itself.

    A document without a place is known by its pictures alone.
    """
    placed = "://" in reference.source or Path(reference.source).is_absolute()
    name = reference.source if placed else reference.sha256
    return str(uuid.uuid5(_IDS, f"{name}\n{reference.number}"))


def _own_picture(source: str) -> str | None:
    """The source itself, where it is a file of one picture; its digest tells, once it is opened."""
    path = Path(source)
    return source if path.suffix.lower() in _PICTURES and path.is_absolute() else None


@dataclass(frozen=True)
class PageNodes:
    """How pages become nodes."""

    view: View
    store: PageStore | None
    extra: Mapping[str, Any]

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
        return known if isinstance(known, Failure) else page_node(known, text, self.extra)

    def of_reading(self, reference: PageReference, reading: Reading) -> PageNode | Failure:
        """The node of a page that the model read."""
        if reading.error is not None:
            return Failure(reading.source, reading.page, _as_input_error(reading.error, reference))
        label = f"Page {reference.number} of {label_of(reference.source)}"
        if reading.finish_reason == "length":
            _logger.warning("%s was not read to its end; raise max_tokens of the Task.", label)
        # The framework leaves nodes without a text out of indices, and says so to nobody.
        text = _told(reading) or f"{label} (nothing to read)"
        return page_node(reference, text, self.extra)

    def reference(self, page: Page) -> PageReference | Failure:
        """Where the page is found again; its picture is in the store from now on."""
        source = _placed(page.source)
        if source is None and self.store is None:
            return Failure(
                page.source,
                page.number,
                DocumentError(
                    f"{label_of(page.source)} has no path, so that its pages cannot be found "
                    "again; keep their pictures with store=."
                ),
            )
        known = PageReference.of(page, self.view, self.store)
        return known if source is None else replace(known, source=source)


def _placed(name: str) -> str | None:
    """A document's name as it can be opened from anywhere; None if it cannot."""
    if "://" in name:
        return name
    path = Path(name)
    return str(path.absolute()) if path.is_file() else None


def _told(reading: Reading) -> str:
    if reading.data is not None:
        return json.dumps(reading.data, ensure_ascii=False)
    return (reading.text or "").strip()


def _as_input_error(error: LlavaKitError, reference: PageReference) -> InputError:
    if isinstance(error, InputError):
        return error
    failure = DocumentError(
        f"Page {reference.number} of {label_of(reference.source)} could not be read: {error}"
    )
    failure.__cause__ = error
    return failure
