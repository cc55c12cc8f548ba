"""Content blocks and nodes of LlamaIndex -> llavakit parts.

Every place in which LlamaIndex keeps an image is known here and nowhere else. Nothing is
opened: an image stays a source, and the backend's policy decides whether it may be opened. The
framework's own ``resolve_image`` is never called, because it reads any file and fetches any
address.
"""

from __future__ import annotations

import binascii
import json
from collections.abc import Iterable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, NoReturn, TypeAlias, TypeVar

from llama_index.core.base.llms.types import (
    AudioBlock,
    CachePoint,
    CitableBlock,
    CitationBlock,
    DocumentBlock,
    ImageBlock,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
    VideoBlock,
)
from llama_index.core.schema import BaseNode, ImageNode, NodeWithScore

from llavakit.documents.message import Attachment
from llavakit.errors import UnsupportedContentError
from llavakit.images import Picture
from llavakit.llama_index.pages import node_label, reference_of
from llavakit.sources.formats import sniff
from llavakit.values import Image, Text, ToolCall, Video

Media = TypeVar("Media", Image, Video)
ContentPart: TypeAlias = Text | Image | Video | Attachment | ToolCall


def read_block(block: Any) -> list[ContentPart]:
    """Return the parts of a content block, in their order.

    Empty for what is not part of the dialogue: a model's reasoning, and cache marks (llavakit
    keeps prefixes by itself).

    Raises:
        UnsupportedContentError: audio, an image or a video without a source, or a block of an
            unknown type.
    """
    if isinstance(block, TextBlock):
        return [Text(block.text)]
    if isinstance(block, ImageBlock):
        return [picture_of(block)]
    if isinstance(block, VideoBlock):
        return [video_of(block)]
    if isinstance(block, DocumentBlock):
        return [document_of(block)]
    if isinstance(block, ToolCallBlock):
        return [tool_call_of(block.tool_call_id, block.tool_name, block.tool_kwargs)]
    if isinstance(block, CitableBlock):
        return [_origin(block), *(part for one in block.content for part in read_block(one))]
    if isinstance(block, CitationBlock):
        return [_origin(block), *read_block(block.cited_content)]
    if isinstance(block, (ThinkingBlock, CachePoint)):
        return []
    if isinstance(block, AudioBlock):
        _refuse("audio", "LLaVA takes text, images and videos")
    _refuse(type(block).__name__, "its type is unknown; use a TextBlock or an ImageBlock")


def source_of(node: BaseNode | NodeWithScore) -> Image | None:
    """Return where a node's image is, in the order in which the framework looks, or None.

    A page that has to be rendered has none: its file is a document and not an image.
    """
    if isinstance(node, NodeWithScore):
        return source_of(node.node)
    if isinstance(node, ImageNode):
        if node.image is not None:
            if node.image[:5].lower() == "data:":
                return Image(node.image, from_url_field=True)
            return Image(_decoded(node.image.encode("ascii", "replace")))
        if node.image_path is not None:
            return Image(Path(node.image_path))
        if node.image_url is not None:
            return Image(str(node.image_url), from_url_field=True)
        # Readers of the framework leave the path of an image there.
        path = None if _is_to_be_rendered(node) else node.metadata.get("file_path")
        return None if path is None else Image(Path(path))
    resource = getattr(node, "image_resource", None)
    if resource is None:
        return None
    if resource.data is not None:
        return Image(_decoded(resource.data))
    if resource.path is not None:
        return Image(Path(resource.path))
    return None if resource.url is None else Image(str(resource.url), from_url_field=True)


def picture_of(block: ImageBlock) -> Image:
    """Return the image of an image block; data win over a path, and a path over a URL.

    Raises:
        UnsupportedContentError: it has no source.
    """
    source = _source(block.image, block.path, block.url, Image)
    if source is None:
        _refuse("image", "it has no source; give it bytes, a path or a url")
    return source


def video_of(block: VideoBlock) -> Video:
    """Return the video of a video block; its ``fps`` says how many frames are looked at.

    Raises:
        UnsupportedContentError: it has no source.
    """
    source = _source(block.video, block.path, block.url, Video)
    if source is None:
        _refuse("video", "it has no source; give it bytes, a path or a url")
    if block.fps is None:
        return source
    return Video(source.source, fps=block.fps, from_url_field=source.from_url_field)


def document_of(block: DocumentBlock) -> Attachment:
    """Return the document of a document block.

    Raises:
        UnsupportedContentError: it has no source, or holds text.
    """
    declared = (block.document_mimetype or "").partition("/")[0]
    if declared in ("text", "audio", "video"):
        advice = "send its text as a TextBlock" if declared == "text" else "it cannot be read"
        _refuse("document", f"it is declared as {declared}; {advice}")
    source = _source(block.data, block.path, block.url, Image)
    if source is None:
        _refuse("document", "it has no source; give it the PDF's bytes, a path or a url")
    return Attachment(source)


def tool_call_of(call_id: str | None, name: str, arguments: Any) -> ToolCall | Text:
    """Return a call of an assistant's message; as text if its arguments are not a JSON object.

    The model wrote the broken call, so it sees it again.
    """
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except ValueError:
            return Text(f"{name}({arguments})")
    if not isinstance(arguments, Mapping):
        return Text(f"{name}({arguments})")
    return ToolCall(call_id or "", name, arguments)


def to_image_block(source: Any) -> ImageBlock:
    """Make an image block of a block, a node, or what :class:`llavakit.Image` takes.

    Raises:
        UnsupportedContentError: a node without an image, or a page that must be rendered first.
        ImageError: an object that cannot be read as an image.
    """
    if isinstance(source, ImageBlock):
        return source
    if isinstance(source, NodeWithScore):
        source = source.node
    if isinstance(source, BaseNode):
        image = source_of(source)
        if image is None and _is_to_be_rendered(source):
            raise UnsupportedContentError(
                f"{node_label(source)} has no image in it; render it first: resolve_node(node), "
                "or ImageResolver() among the node_postprocessors."
            )
        if image is None:
            _refuse(
                type(source).__name__,
                "it holds no image; give a node with an image, a path, a url or a PIL image",
            )
        source = image
    image = source if isinstance(source, Image) else Image(source)
    held = image.source
    if isinstance(held, Picture):
        png = BytesIO()
        held.rgb.save(png, "PNG", compress_level=1)
        return ImageBlock(image=png.getvalue(), image_mimetype="image/png")
    if isinstance(held, bytes):
        return ImageBlock(image=held)
    if isinstance(held, Path):
        # Not validated: whether the file exists is for the policy to reveal.
        return ImageBlock.model_construct(path=held)
    return _named(held, image.from_url_field)


def flattened(pictures: Any) -> Iterable[Any]:
    """Flatten one image, or lists of images within lists, in their order."""
    if isinstance(pictures, (list, tuple)):
        for one in pictures:
            yield from flattened(one)
    elif pictures is not None:
        yield pictures


def _is_to_be_rendered(node: BaseNode) -> bool:
    return reference_of(node) is not None


def _named(source: str, from_url_field: bool) -> ImageBlock:
    if from_url_field or source.lstrip()[:5].lower() == "data:" or "://" in source[:64]:
        return ImageBlock(url=source)
    return ImageBlock.model_construct(path=Path(source))


def _source(data: Any, path: Any, url: Any, kind: type[Media]) -> Media | None:
    if isinstance(data, (bytes, bytearray)):
        return kind(_decoded(bytes(data)))
    if data is not None:  # an open file
        return kind(data)
    if path is not None:
        return kind(Path(path))
    return None if url is None else kind(str(url), from_url_field=True)


def _decoded(data: bytes) -> bytes:
    # The framework keeps bytes as base64, but a field that was set later holds them as they are.
    if sniff(data[:1024]):
        return data
    try:
        return binascii.a2b_base64(data.translate(None, b" \t\r\n"), strict_mode=True)
    except binascii.Error:
        return data


def _origin(block: CitableBlock | CitationBlock) -> Text:
    named = " ".join(f"{block.title} ({block.source})".split()) if block.source else block.title
    return Text(f"{named}:\n" if named.strip(" ()") else "")


def _refuse(kind: str, reason: str) -> NoReturn:
    raise UnsupportedContentError(f"The message has a block of type {kind!r}: {reason}.")
