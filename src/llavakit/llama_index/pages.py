"""Pages as nodes: what an index keeps of a page, and the page again from what it kept.

A node of a page is an ``ImageNode`` whose metadata are those of a
:class:`~llavakit.documents.PageReference`, beside the names that the framework's readers use.
Stores keep them, whatever else they lose; text splitters pass them on to the pieces of a page.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import uuid
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias

from llama_index.core.base.llms.types import ImageBlock
from llama_index.core.bridge.pydantic import (
    PrivateAttr,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)
from llama_index.core.schema import (
    BaseNode,
    ImageNode,
    ImageType,
    MetadataMode,
    NodeRelationship,
    NodeWithScore,
    RelatedNodeInfo,
)

from llavakit.documents import (
    PageReference,
    PageStore,
    reopen,
)
from llavakit.documents.attachments import outermost
from llavakit.documents.passwords import Password
from llavakit.documents.suffixes import IMAGE_SUFFIXES
from llavakit.errors import (
    ParameterError,
    SourceNotAllowedError,
)
from llavakit.sources import SourcePolicy

if TYPE_CHECKING:
    from llama_index.core.base.llms.types import BaseContentBlock

_logger = logging.getLogger(__name__)

OnError: TypeAlias = Literal["raise", "skip"]

_NAMES = ("file_name", "file_path")
_REFERENCE = frozenset(PageReference("", 1, "", (1, 1), image_path=" ").metadata())
_IDS = uuid.UUID("6f1c3d52-6a53-5a0b-9c70-3f1f8f6b1d0e")  # ours alone: any fixed one would do


@dataclass(frozen=True)
class PageOpening:
    """How the images of pages are opened: what the reader that found them was allowed."""

    policy: SourcePolicy
    store: PageStore | None = None
    page_seconds: float | None = 30.0
    password: Password = field(default=None, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        """As pickles keep it: without the password."""
        return {**self.__dict__, "password": None}

    def draw(self, pages: Sequence[PageReference]) -> list[bytes]:
        """The images of pages as PNG; a document is opened once for all of its pages.

        Raises:
            DocumentError: a page is not the one that was indexed any more.
            SourceError: it cannot be reached, or the policy forbids it.
        """
        found = []
        opened = reopen(
            pages,
            store=self.store,
            policy=self.policy,
            page_seconds=self.page_seconds,
            password=self.password,
        )
        for page in opened:
            png = io.BytesIO()
            page.picture.rgb.save(png, "PNG", compress_level=1)
            found.append(png.getvalue())
        return found


class PageNode(ImageNode):
    """A page before it is in a store; afterwards it is an ``ImageNode`` as any other.

    To the framework it is both: a document, which pipelines and document stores replace and
    delete by its id, and a node of that document, by whose id vector stores delete it. It draws
    its image by itself where the framework wants one, under the reader's policy. Its hash
    covers words, metadata and image, as those of documents do.
    """

    _opening: PageOpening | None = PrivateAttr(default=None)
    _in_index: bool = PrivateAttr(default=False)
    _embedded: bytes | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _is_its_own_document(self) -> Self:
        # Written for those who read it back as a plain node; here it would outlive a new id.
        source = self.relationships.get(NodeRelationship.SOURCE)
        if isinstance(source, RelatedNodeInfo) and source.node_id == self.id_:
            del self.relationships[NodeRelationship.SOURCE]
        return self

    @model_serializer(mode="wrap")
    def custom_model_dump(
        self, handler: SerializerFunctionWrapHandler, info: SerializationInfo
    ) -> dict[str, Any]:
        """As nodes are written, with the document that it is deleted by."""
        data: dict[str, Any] = super().custom_model_dump(handler, info)
        if "relationships" in data and NodeRelationship.SOURCE not in self.relationships:
            itself = {NodeRelationship.SOURCE.value: self._as_source().model_dump()}
            data["relationships"] = {**itself, **data["relationships"]}
        return data

    @property
    def source_node(self) -> RelatedNodeInfo | None:
        """The document that it comes from, if it was made a piece of another one.

        In an index, itself. A document store that sees this of a document deletes it twice,
        and reports that it was not found.
        """
        if NodeRelationship.SOURCE not in self.relationships and self._in_index:
            return self._as_source()
        return super().source_node

    @property
    def ref_doc_id(self) -> str | None:
        """The id that vector stores delete it by: its own, unless it is a piece of another."""
        return super().ref_doc_id or self.node_id

    @property
    def doc_id(self) -> str:
        """The id, under the name that documents have for it."""
        return self.id_

    @doc_id.setter
    def doc_id(self, value: str) -> None:
        self.id_ = value

    def get_doc_id(self) -> str:
        """The id, as documents are asked for it."""
        return self.id_

    @property
    def hash(self) -> str:
        """Changes with the text, the metadata and the image, whose digest is among them."""
        hashed = json.dumps([self.text, self.metadata], sort_keys=True, default=str)
        return hashlib.sha256(hashed.encode("utf-8", "surrogatepass")).hexdigest()

    def resolve_image(self) -> ImageType:
        """The page's image as PNG, for the framework's embeddings of images.

        Raises:
            DocumentError: the page is not the one that was read any more.
            SourceError: it cannot be reached, or the reader's policy forbids it.
        """
        png = self._picture()
        if png is None:
            return super().resolve_image()
        # An index that embeds images shows the nodes that it kept to the model as they are.
        self._embedded = None if self.image_path else png
        return io.BytesIO(png)

    def get_content_blocks(
        self, metadata_mode: MetadataMode = MetadataMode.ALL
    ) -> list[BaseContentBlock]:
        """Its metadata and its image; errors as in :meth:`resolve_image`."""
        png = self._picture()
        if png is None:
            return super().get_content_blocks(metadata_mode)
        shown = ImageBlock(image=png, image_mimetype="image/png")
        return [*self.get_metadata_content_blocks(metadata_mode), shown]

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """As pydantic's. A copy without changes is what indices keep: it is a node of theirs."""
        copy = super().model_copy(update=update, deep=deep)
        if update is None:
            copy._in_index = True
            if self._embedded is not None:
                copy.image = b64encode(self._embedded).decode("ascii")
                copy.image_mimetype = "image/png"
            self._embedded = copy._embedded = None
        return copy

    def __eq__(self, other: object) -> bool:
        # Not by what is private: a copy in an index, or one that was read back, is the same page.
        return type(other) is type(self) and self.__dict__ == other.__dict__

    __hash__ = None  # type: ignore[assignment]

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        # The framework's way forgets what is private: the policy among it.
        for name, value in (state.get("__pydantic_private__") or {}).items():
            setattr(self, name, value)

    def _picture(self) -> bytes | None:
        """The image that is not in the node."""
        if self.image is not None:
            return None
        page = reference_of(self)
        if page is None:
            return None
        if self._opening is None:
            raise SourceNotAllowedError(
                f"{node_label(self)} was read back without the policy under which it may be "
                "opened; give it one with llavakit.llama_index.resolve_node(node, policy)."
            )
        return self._opening.draw([page])[0]

    def _as_source(self) -> RelatedNodeInfo:
        return RelatedNodeInfo(node_id=self.node_id)


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


def page_node(
    reference: PageReference,
    text: str,
    extra: Mapping[str, Any],
    opening: PageOpening | None = None,
) -> PageNode:
    """The node of a page.

    Args:
        reference: the page.
        text: what it is found by.
        extra: further metadata (see :func:`checked_extra`).
        opening: how it may be opened again by the node itself; None is not at all.
    """
    # Stores of tables want the same keys with the same types in every row.
    kept = {**reference.metadata(), "dpi": float(reference.dpi)}
    kept["image_path"] = reference.image_path or _own_picture(reference.source) or ""
    names = {"file_name": Path(reference.source).name, "file_path": reference.source}
    node = PageNode(  # type: ignore[call-arg]  # the framework's own constructor hides the fields
        id_=_stable_id(reference),
        text=text,
        image_path=kept["image_path"] or None,
        metadata={**names, **extra, **kept},
        excluded_embed_metadata_keys=[*_NAMES, *sorted(_REFERENCE)],
        excluded_llm_metadata_keys=["file_path", *sorted(_REFERENCE - {"page_label"})],
    )
    node._opening = opening
    return node


def reference_of(node: BaseNode | NodeWithScore) -> PageReference | None:
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


def node_label(node: BaseNode | NodeWithScore) -> str:
    """A node in a few words: its file and page."""
    name = node.metadata.get("file_name") or node.metadata.get("file_path") or node.node_id
    page = node.metadata.get("page_label")
    return str(name) if page is None else f"page {page} of {name}"


def _stable_id(reference: PageReference) -> str:
    """The same for the same place, so that a page that is indexed again replaces itself.

    A document without a place is known by its images alone.
    """
    placed = "://" in reference.source or Path(reference.source).is_absolute()
    name = reference.source if placed else reference.sha256
    return str(uuid.uuid5(_IDS, f"{name}\n{reference.number}"))


def _own_picture(source: str) -> str | None:
    """The source itself, where its name is that of one image; its digest proves it when opened."""
    path = Path(source)
    alone = path.suffix.lower() in IMAGE_SUFFIXES and outermost(source) == source
    return source if alone and path.is_absolute() else None
