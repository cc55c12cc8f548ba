"""Where an answer stands on the pages of nodes, in their metadata."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llama_index.core.schema import NodeWithScore

from llavakit.documents import cite_answer
from llavakit.llama_index.pages import reference_of
from llavakit.sources import SourcePolicy


def with_boxes(
    nodes: Sequence[NodeWithScore], answer: Any, policy: SourcePolicy
) -> list[NodeWithScore]:
    """Copies of nodes whose metadata say where an answer stands on their pages, in plain data.

    Nodes that are no pages, and texts, stay as they are.
    """
    pages = {at: page for at, one in enumerate(nodes) if (page := reference_of(one.node))}
    located = list(nodes)
    places = cite_answer(list(pages.values()), answer, policy=policy)
    for at, place in zip(pages, places, strict=True):
        node = nodes[at].node
        known = {"metadata": {**node.metadata, **place.places()}}
        located[at] = nodes[at].model_copy(update={"node": node.model_copy(update=known)})
    return located
