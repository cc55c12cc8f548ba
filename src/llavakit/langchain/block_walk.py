"""One walk over the content blocks of a message, also those that stand inside others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from langchain_core.messages import BaseMessage

Replace = Callable[[Mapping[str, Any]], list[Any]]
"""Gives the blocks that stand for a block; ``[block]`` itself leaves it as it is."""


def replace_blocks(message: BaseMessage, replace: Replace, *, unwrap: bool = False) -> BaseMessage:
    """Return the message with blocks replaced; itself if all stay as they are.

    Blocks inside ``tool_result`` and ``non_standard`` blocks are visited; text is not.

    Args:
        message: is not mutated.
        replace: is called with every innermost block that is not text.
        unwrap: leaves out the ``non_standard`` that stands around a block.
    """
    if isinstance(message.content, str):
        return message
    content = _replaced(message.content, replace, unwrap)
    return message if content is None else message.model_copy(update={"content": content})


def _replaced(blocks: list[Any], replace: Replace, unwrap: bool) -> list[Any] | None:
    """Blocks with what stands for each; None if they are the same."""
    new = [one for block in blocks for one in _visited(block, replace, unwrap)]
    same = len(new) == len(blocks) and all(a is b for a, b in zip(new, blocks, strict=True))
    return None if same else new


def _visited(block: Any, replace: Replace, unwrap: bool) -> list[Any]:
    if not isinstance(block, Mapping) or block.get("type") == "text":
        return [block]
    if block.get("type") == "tool_result" and isinstance(block.get("content"), list):
        inner = _replaced(block["content"], replace, unwrap)
        return [block if inner is None else {**block, "content": inner}]
    value = block.get("value")
    if block.get("type") == "non_standard" and isinstance(value, Mapping):
        found = _visited(value, replace, unwrap)
        if unwrap:
            return found
        same = len(found) == 1 and found[0] is value
        return [block] if same else [{**block, "value": one} for one in found]
    return replace(block)
