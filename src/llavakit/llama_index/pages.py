"""Pages as nodes: what an index keeps of a page, and the page again from what it kept.

A node of a page is an ``ImageNode`` whose metadata are those of a
:class:`~llavakit.documents.PageReference`, beside the names that the framework's readers use.
Stores keep them, whatever else they lose; text splitters pass them on to the pieces of a page.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llama_index.core.schema import (
    BaseNode,
    ImageNode,
    NodeRelationship,
    RelatedNodeInfo,
)

from llavakit.documents import PageReference, PageStore
from llavakit.documents.folders import SUFFIXES
from llavakit.errors import ParameterError

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


def label_of(node: BaseNode) -> str:
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
