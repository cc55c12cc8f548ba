"""Messages with each image as the digest of its pixels: fit for the key of the LLM cache.

LangChain keys its cache by the messages as it serialises them. Base64 would enter as megabytes, a
path as its name, whatever the file holds by then. So every image that can be opened without the
network is opened once, here, and replaced by the digest of its pixels, to which the image stays
attached (:class:`PictureId`). http(s) URLs stay as they are: nothing is fetched for a key.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from langchain_core.messages import BaseMessage, ToolMessage

from llavakit.documents.message import page_images
from llavakit.images import open_picture
from llavakit.langchain.block_walk import replace_blocks
from llavakit.langchain.content_blocks import PictureId, document_of, picture_of, video_of
from llavakit.sources import SourcePolicy, is_address, read_source
from llavakit.values import Image, Video


def canonical(
    messages: Sequence[BaseMessage], policy: SourcePolicy, max_pages: int
) -> list[BaseMessage]:
    """Replace every local image and video of the messages by its digest; nothing is mutated.

    A local PDF is replaced by its pages, at most ``max_pages``.

    Raises:
        ImageError: an image that cannot be used.
        DocumentError: a PDF that cannot be read, or has too many pages.
        SourceError: a file that cannot be reached or that the policy forbids.
        UnsupportedContentError: an image block without a source.
    """
    opener = _Opener(policy, max_pages)
    return [_canonical_message(message, opener) for message in messages]


def has_pictures(messages: Sequence[BaseMessage]) -> bool:
    """Return whether there may be an image or a document to open; cheap."""
    return any(
        not isinstance(block, str) and not (isinstance(block, Mapping) and _is_text(block))
        for message in messages
        if not isinstance(message.content, str)
        for block in message.content
    )


def has_documents(messages: Sequence[BaseMessage]) -> bool:
    """Return whether a document is still to be opened; canonical messages may have remote ones."""
    return any(
        isinstance(block, Mapping) and document_of(block) is not None
        for message in messages
        if not isinstance(message.content, str)
        for block in message.content
    )


@dataclass(frozen=True, slots=True)
class _Opener:
    """Opens the image or document of a block, unless it is on another machine."""

    policy: SourcePolicy
    max_pages: int

    def __call__(self, block: Mapping[str, Any]) -> list[Any]:
        """Return the blocks that replace a block; mostly one, for a PDF one for each page."""
        if isinstance(block.get("file_id"), PictureId):
            return [block]
        if (image := picture_of(block)) is not None:
            return [self._image(image)]
        if (video := video_of(block)) is not None:
            return [self._video(video)]
        if (document := document_of(block)) is None or is_remote(document.source):
            return [block]
        pages = page_images(document, self.max_pages, self.policy)
        return [self._image(page) for page in pages]

    def _image(self, image: Image) -> dict[str, Any]:
        if is_remote(image):
            return {"type": "image", "url": str(image.source).strip()}
        picture = open_picture(image.source, self.policy, from_url_field=image.from_url_field)
        return {"type": "image", "file_id": PictureId(picture.digest, Image(picture))}

    def _video(self, video: Video) -> dict[str, Any]:
        """A video by the digest of its file; nothing is decoded for a key."""
        wish = {"num_frames": video.num_frames, "fps": video.fps}
        asked = {name: value for name, value in wish.items() if value is not None}
        if is_remote(video):
            return {"type": "video", "url": str(video.source).strip(), **asked}
        data = read_source(video.source, self.policy, from_url_field=video.from_url_field)
        held = PictureId(sha256(data).hexdigest(), Video(data))
        return {"type": "video", "file_id": held, **asked}


def _canonical_message(message: BaseMessage, opener: _Opener) -> BaseMessage:
    message = replace_blocks(message, opener, unwrap=True)
    if isinstance(message, ToolMessage) and message.artifact is not None:
        # Never sent to a model; as part of the cache key it may hold a memory address.
        return message.model_copy(update={"artifact": None})
    return message


def is_remote(image: Image | Video) -> bool:
    """Return whether an image or a video has to be fetched from the network."""
    return isinstance(image.source, str) and is_address(image.source)


def _is_text(block: Mapping[str, Any]) -> bool:
    return block.get("type") == "text"
