"""Messages made fit for tracing and for the LLM cache, before LangChain sees them.

LangChain serialises the input for callbacks and, as a key, for the LLM cache. A PIL image
would enter as its memory address (so that a later image at the same address is answered
from the cache), base64 as megabytes, a path as its name whatever the file holds by now. So
every picture that can be had without the network is opened once, here, and replaced by the
digest of its pixels; the picture rides along (:class:`PictureId`). http(s) URLs stay as they
are: nothing is fetched for a trace.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.messages import BaseMessage, ToolMessage

from llavakit.images import open_picture
from llavakit.langchain.carriers import PictureId, picture_of
from llavakit.sources import SourcePolicy
from llavakit.values import Image


def canonical(messages: Sequence[BaseMessage], policy: SourcePolicy) -> list[BaseMessage]:
    """The messages with every local picture replaced by its digest; nothing is mutated.

    Raises:
        ImageError: a picture that cannot be used.
        SourceError: a file that cannot be reached or that the policy forbids.
        UnsupportedContentError: an image block without a source.
    """
    return [_canonical_message(message, policy) for message in messages]


def has_pictures(messages: Sequence[BaseMessage]) -> bool:
    """Whether there may be a picture to open; cheap."""
    return any(
        not isinstance(block, str) and not (isinstance(block, Mapping) and _is_text(block))
        for message in messages
        if not isinstance(message.content, str)
        for block in message.content
    )


def _canonical_message(message: BaseMessage, policy: SourcePolicy) -> BaseMessage:
    update: dict[str, Any] = {}
    if not isinstance(message.content, str):
        content = [_canonical_block(block, policy) for block in message.content]
        if any(new is not old for new, old in zip(content, message.content, strict=True)):
            update["content"] = content
    if isinstance(message, ToolMessage) and message.artifact is not None:
        # Never sent to a model; as part of the cache key it may hold a memory address.
        update["artifact"] = None
    return message.model_copy(update=update) if update else message


def _canonical_block(block: Any, policy: SourcePolicy) -> Any:
    if not isinstance(block, Mapping) or _is_text(block):
        return block
    if block.get("type") == "tool_result" and isinstance(block.get("content"), list):
        return {**block, "content": [_canonical_block(one, policy) for one in block["content"]]}
    if block.get("type") == "non_standard" and isinstance(block.get("value"), Mapping):
        return _canonical_block(block["value"], policy)
    if isinstance(block.get("file_id"), PictureId):
        return block
    image = picture_of(block)
    return block if image is None else _image_block(image, policy)


def _image_block(image: Image, policy: SourcePolicy) -> dict[str, Any]:
    source = image.source
    if isinstance(source, str) and source.lstrip()[:8].lower().startswith(("http://", "https://")):
        return {"type": "image", "url": source.strip()}
    picture = open_picture(source, policy, from_url_field=image.from_url_field)
    return {"type": "image", "file_id": PictureId(picture.digest, Image(picture))}


def _is_text(block: Mapping[str, Any]) -> bool:
    return block.get("type") == "text"
