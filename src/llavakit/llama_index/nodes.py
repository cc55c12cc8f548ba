"""Pictures of nodes, opened under a policy before the framework touches them.

The framework reads any path and fetches any address that a node names, without a filter or
a cap, as soon as it makes content blocks of the node. A node that holds its picture's bytes
leaves it nothing to open; :func:`resolve_node` makes one.

>>> engine = index.as_query_engine(
...     llm=llm, multimodal=True, node_postprocessors=[PictureResolver(policy=policy)]
... )  # doctest: +SKIP
"""

from __future__ import annotations

from base64 import b64encode

from llama_index.core.bridge.pydantic import ConfigDict, Field
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import (
    BaseNode,
    ImageNode,
    MediaResource,
    NodeWithScore,
    QueryBundle,
)

from llavakit.llama_index.carriers import source_of
from llavakit.sources import DEFAULT_POLICY, SourcePolicy, read_source


def resolve_node(node: BaseNode, policy: SourcePolicy = DEFAULT_POLICY) -> BaseNode:
    """The node with its picture's bytes inside; the node itself if there is nothing to open.

    Path and address stay where they are, for whoever shows sources; the framework looks at
    the bytes first. What the bytes are is found out by the model's own door for pictures.

    Args:
        node: any node or document; nothing of it is changed.
        policy: what may be opened.

    Raises:
        SourceError: it cannot be reached, or the policy forbids it.
        ImageTooLargeError: more bytes than the policy allows.
    """
    source = source_of(node)
    if source is None or isinstance(source.source, bytes):
        return node
    # A node holds bytes, a path or an address, never an open picture.
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


class PictureResolver(BaseNodePostprocessor):
    """Opens the pictures of retrieved nodes under a policy (see :func:`resolve_node`).

    Give it as the last of a query or chat engine's ``node_postprocessors``.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    policy: SourcePolicy = Field(default=DEFAULT_POLICY, exclude=True)
    """Which files and addresses may be opened."""

    @classmethod
    def class_name(cls) -> str:
        return "llavakit_picture_resolver"

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        return [
            NodeWithScore(node=resolve_node(one.node, self.policy), score=one.score)
            for one in nodes
        ]
