"""Images of nodes, opened under a policy before the framework touches them.

The framework reads any path and fetches any address that a node names, without a filter or
a cap, as soon as it makes content blocks of the node. A node that holds its image's bytes
leaves it nothing to open; :func:`resolve_node` makes one. Pages that an index found, and pieces
of their text, get the image that was indexed, or an error, never another one.

>>> engine = index.as_query_engine(
...     llm=llm, multimodal=True, node_postprocessors=[ImageResolver(policy=policy)]
... )  # doctest: +SKIP
"""

from __future__ import annotations

import logging
import os
from base64 import b64encode
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, overload

from llama_index.core.bridge.pydantic import (
    ConfigDict,
    Field,
    field_serializer,
    field_validator,
)
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import (
    BaseNode,
    ImageNode,
    MediaResource,
    NodeWithScore,
    QueryBundle,
)

from llavakit._checks import checked, members
from llavakit.documents import PageReference, PageStore
from llavakit.errors import InputError
from llavakit.llama_index.content_blocks import source_of
from llavakit.llama_index.pages import (
    OnError,
    PageOpening,
    reference_of,
    to_store,
)
from llavakit.llama_index.policy_required import PolicyRequired
from llavakit.sources import DEFAULT_POLICY, SourcePolicy, read_source

_logger = logging.getLogger(__name__)


@overload
def resolve_node(
    node: BaseNode, policy: SourcePolicy = ..., store: PageStore | str | Path | None = ...
) -> BaseNode: ...
@overload
def resolve_node(
    node: NodeWithScore, policy: SourcePolicy = ..., store: PageStore | str | Path | None = ...
) -> NodeWithScore: ...
@checked
def resolve_node(
    node: BaseNode | NodeWithScore,
    policy: SourcePolicy = DEFAULT_POLICY,
    store: PageStore | str | Path | None = None,
) -> BaseNode | NodeWithScore:
    """The node with its image's bytes inside; the node itself if there is nothing to open.

    A page of :class:`~llavakit.llama_index.PageImageReader`, or a piece of its text, becomes an
    ``ImageNode`` with the page's image. Path and address stay where they are, for code
    that shows sources; the framework looks at the bytes first. What the bytes are is detected where
    the model opens images.

    Args:
        node: any node or document, or what a retriever found, which keeps its score; nothing
            of it is changed.
        policy: what may be opened.
        store: images of pages by their digest, a folder or a ``PageStore``.

    Raises:
        SourceError: it cannot be reached, or the policy forbids it.
        DocumentError: a page is not the one that was indexed any more.
        ImageTooLargeError: more bytes than the policy allows.
    """
    if isinstance(node, NodeWithScore):
        return _scored_as(node, resolve_node(node.node, policy, store))
    reference = _to_find(node)
    if reference is not None:
        (png,) = PageOpening(policy, to_store(store)).draw([reference])
        return _with_page(node, reference, png)
    return _with_bytes(node, policy)


class ImageResolver(PolicyRequired, BaseNodePostprocessor):
    """Opens the images of retrieved nodes under a policy (see :func:`resolve_node`).

    Give it as the last of a query or chat engine's ``node_postprocessors``. Of several pieces
    of one page only the first is kept: it shows the whole page.

    Attributes:
        policy: which files and addresses may be opened.
        store: images of pages by their digest, a folder or a ``PageStore``.
        page_seconds: most seconds for drawing a page again (see
            :func:`~llavakit.documents.open_files`).
        on_error: ``"raise"`` where an image is not to be had, or ``"skip"`` its node: a
            warning is logged.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    policy: SourcePolicy = Field(default=DEFAULT_POLICY)
    store: PageStore | None = None
    page_seconds: float | None = 30.0
    on_error: OnError = "raise"

    @field_validator("store", mode="before")
    @classmethod
    def _folder_is_a_store(cls, store: Any) -> Any:
        return to_store(store)

    @field_serializer("store")
    def _store_as_folder(self, store: PageStore | None) -> str | None:
        return None if store is None else str(store.folder)

    @classmethod
    def class_name(cls) -> str:
        return "llavakit_image_resolver"

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        kept = _one_for_each_page(scored(nodes))
        pictures = self._pictures([page for _, page in kept if page is not None])
        resolved = []
        for one, page in kept:
            if page is None:
                node = self._resolved(one.node)
            else:
                node = _with_page(one.node, page, pictures[page]) if page in pictures else None
            if node is not None:  # else skipped, and logged
                resolved.append(_scored_as(one, node))
        return resolved

    def _resolved(self, node: BaseNode) -> BaseNode | None:
        try:
            return resolve_node(node, self.policy)
        except InputError as error:
            self._skip(error)
            return None

    def _skip(self, error: InputError) -> None:
        if self.on_error == "raise":
            raise error
        _logger.warning("Left out: %s", error)

    def _pictures(self, wanted: Sequence[PageReference]) -> dict[PageReference, bytes]:
        opening = PageOpening(self.policy, self.store, self.page_seconds)
        try:
            # All at once: a document is opened once for all of its pages.
            return dict(zip(wanted, opening.draw(wanted), strict=True))
        except InputError:
            if self.on_error == "raise":
                raise
        pictures = {}
        for page in wanted:
            try:
                (pictures[page],) = opening.draw([page])
            except InputError as error:
                self._skip(error)
        return pictures


@checked
def scored(nodes: Iterable[BaseNode | NodeWithScore]) -> list[NodeWithScore]:
    """Nodes as retrievers give them; those without a score stay so.

    Raises:
        ParameterError: one is no node.
    """
    return [
        one if isinstance(one, NodeWithScore) else NodeWithScore(node=one)
        for one in members("nodes", nodes, BaseNode | NodeWithScore)
    ]


def _scored_as(found: NodeWithScore, node: BaseNode) -> NodeWithScore:
    return found if node is found.node else found.model_copy(update={"node": node})


def _one_for_each_page(
    nodes: Sequence[NodeWithScore],
) -> list[tuple[NodeWithScore, PageReference | None]]:
    """The nodes with the pages that are to be found for them."""
    seen: set[PageReference] = set()
    kept = []
    for one in nodes:
        page = reference_of(one.node)
        if page is not None and page in seen:
            continue
        if page is not None:
            seen.add(page)
        kept.append((one, _to_find(one.node)))
    return kept


def _to_find(node: BaseNode) -> PageReference | None:
    """The page whose image a node is to be given, if it has none."""
    if isinstance(node, ImageNode) and node.image is not None:
        return None
    return reference_of(node)


def _with_bytes(node: BaseNode, policy: SourcePolicy) -> BaseNode:
    source = source_of(node)
    if source is None or isinstance(source.source, bytes):
        return node
    # A node holds bytes, a path or an address, never an open image.
    data = b64encode(
        read_source(
            source.source,  # type: ignore[arg-type]
            policy,
            from_url_field=source.from_url_field,
        )
    )
    if isinstance(node, ImageNode):
        return node.model_copy(update={"image": data.decode("ascii")})
    held: MediaResource = getattr(node, "image_resource")  # noqa: B009
    return node.model_copy(update={"image_resource": held.model_copy(update={"data": data})})


def _with_page(node: BaseNode, page: PageReference, png: bytes) -> ImageNode:
    # The framework does not take a path to nowhere, even where it has the bytes.
    path = page.image_path if os.path.isfile(page.image_path or "") else None  # noqa: PTH113
    image = {
        "image": b64encode(png).decode("ascii"),
        "image_path": path,
        "image_mimetype": "image/png",
    }
    if isinstance(node, ImageNode):
        return node.model_copy(update=image)
    shared = (
        "id_",
        "metadata",
        "excluded_embed_metadata_keys",
        "excluded_llm_metadata_keys",
        "relationships",
        "metadata_template",
        "metadata_separator",
    )
    return ImageNode(
        text=node.get_content(),
        **image,
        **{name: getattr(node, name) for name in shared},
    )
