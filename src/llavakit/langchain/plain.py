"""Messages made of plain data: strings, numbers, lists and dicts, as every store can hold them.

LangChain hands a run's input to callbacks, listeners and, through those, to histories that are
kept in files and data bases. What it passes on must be the message, with its images: an object (a
PIL image, an array, bytes, an open file) becomes base64, and plain data stay as they are, so that
a recorded message can be sent again.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from langchain_core.messages import BaseMessage

from llavakit._checks import checked
from llavakit.images import Picture
from llavakit.langchain.block_walk import replace_blocks
from llavakit.langchain.content_blocks import (
    SOURCE_FIELDS,
    HeldBase64,
    document_of,
    head_of,
    picture_of,
    video_of,
)
from llavakit.sources.formats import sniff
from llavakit.values import Image, Video

_MIME_TYPES = {
    "PPM": "image/x-portable-pixmap",
    "PDF": "application/pdf",
    "VIDEO": "video/mp4",
}


@checked
def plain_messages(messages: Sequence[BaseMessage]) -> list[BaseMessage]:
    """Return the messages with every image, video and document in them as plain data.

    Objects become base64 (PNG where they are pixels); paths, URLs and base64 stay as they are. The
    model does not need this: it takes objects. A checkpointer, a queue or a history that is filled
    by hand does, before the messages are put there.

    Nothing is opened, and nothing is mutated.

    Raises:
        ImageError: an object that no image can be made from.
        UnsupportedContentError: an image block without a source.
    """
    return [replace_blocks(message, _plain_block) for message in messages]


def _plain_block(block: Mapping[str, Any]) -> list[Any]:
    image = picture_of(block)
    if _is_plain(block):
        return [_with_mime_type(block)]
    if image is not None:
        return [{"type": "image", **_rest(block), **_source_fields(image)}]
    video = video_of(block)
    if video is not None:
        return [{"type": "video", **_rest(block), **_source_fields(video)}]
    document = document_of(block)
    if document is not None:
        return [{"type": "file", **_rest(block), **_source_fields(document.source)}]
    return [block]


def _rest(block: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a block besides its type and its source."""
    return {
        name: value
        for name, value in block.items()
        if name != "type" and name not in SOURCE_FIELDS and _is_plain(value)
    }


def _source_fields(image: Image | Video) -> dict[str, str]:
    source = image.source
    if isinstance(source, Picture):
        return {"base64": HeldBase64.of(source), "mime_type": "image/png"}
    if isinstance(source, bytes):
        return {"base64": b64encode(source).decode("ascii"), "mime_type": _mime_type(source)}
    if isinstance(source, Path):
        return {"path": str(source)}
    return {"url": source} if image.from_url_field else {"path": source}


def _with_mime_type(block: Mapping[str, Any]) -> Mapping[str, Any]:
    """LangChain's own tracing needs it beside base64 (``convert_to_openai_image_block``)."""
    inline = "base64" in block or block.get("source_type") == "base64"
    if block.get("type") != "image" or not inline or "mime_type" in block:
        return block
    image = picture_of(block)
    known = image is not None and isinstance(image.source, str)
    data = block.get("base64") or block.get("data")
    if not known or not isinstance(data, str):
        return block
    if data.lstrip()[:5].lower() == "data:":
        declared, _, rest = data.lstrip().partition(",")
        mime = declared[5:].partition(";")[0] or "image/png"
        name = "base64" if "base64" in block else "data"
        return {**block, name: rest, "mime_type": mime}
    return {**block, "mime_type": _mime_type(head_of(data))}


def _mime_type(data: bytes) -> str:
    kind = sniff(data[:4096]) or "PNG"
    return _MIME_TYPES.get(kind, f"image/{kind.lower()}")


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _is_plain(one) for key, one in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (str, int, float, bool))
