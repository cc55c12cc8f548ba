"""The images, videos and files that a request names, and where they stand in its body."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from llavakit.errors import ParameterError
from llavakit.serving.errors import Refusal, blamed
from llavakit.serving.messages import (
    ChatMessage,
    FileBlock,
    FileBlocks,
    ImageBlock,
    ImageBlocks,
    ImageUrl,
    VideoBlock,
    VideoBlocks,
    VideoUrl,
)

Place: TypeAlias = Callable[[int, int | None], str]
"""Where in the body a message stands, by its number, or a block of it, by both numbers."""


@dataclass(frozen=True, slots=True)
class ImageSource:
    """Where an image, a video or a file of a request comes from.

    Attributes:
        place: in the body, for errors.
        source: a data URI, base64, or an address.
        file: what the client calls a file; None for an image.
        video: whether it is a video, which is read here and decoded when it is asked about.
    """

    place: str
    source: str
    file: str | None = None
    video: bool = False


def in_messages(number: int, block: int | None) -> str:
    """Return where a message of chat completions, or a block of it, stands."""
    at = f"messages[{number}]"
    return at if block is None else f"{at}.content[{block}]"


def image_sources(
    messages: Sequence[ChatMessage], most: int, place: Place = in_messages
) -> list[ImageSource]:
    """Return where the images, videos and files of a request come from, in their order.

    Raises:
        Refusal: more than ``most`` images, or a block that names none or several.
    """
    found = [
        (place(number, position), block)
        for number, message in enumerate(messages)
        if isinstance(message.content, list)
        for position, block in enumerate(message.content)
        if isinstance(block, ImageBlocks | VideoBlocks | FileBlocks)
    ]
    if len(found) > most:
        raise Refusal(
            413,
            f"The request has {len(found)} images, videos or files; this server takes at most "
            f"{most}.",
            code="too_many_images",
            param="messages",
        )
    sources = []
    for at, block in found:
        with blamed(at):
            sources.append(_source(at, block))
    return sources


def _source(at: str, block: ImageBlocks | VideoBlocks | FileBlocks) -> ImageSource:
    if isinstance(block, FileBlocks):
        return _file(at, block)
    return _video(at, block) if isinstance(block, VideoBlocks) else _image(at, block)


def _image(at: str, block: ImageBlocks) -> ImageSource:
    if isinstance(block, ImageBlock):
        given = _only("An image block", "image, url", block.image, block.url, block.base64)
        return ImageSource(at, given)
    address = block.image_url
    return ImageSource(at, address.url if isinstance(address, ImageUrl) else address)


def _video(at: str, block: VideoBlocks) -> ImageSource:
    if isinstance(block, VideoBlock):
        given = _only("A video block", "video, url", block.video, block.url, block.base64)
        return ImageSource(at, given, video=True)
    address = block.video_url
    return ImageSource(at, address.url if isinstance(address, VideoUrl) else address, video=True)


def _only(what: str, names: str, *sources: str | None) -> str:
    given = [one for one in sources if one is not None]
    if len(given) != 1:
        raise ParameterError(f"{what} takes exactly one of {names} and base64.")
    return given[0]


def _file(at: str, block: FileBlocks) -> ImageSource:
    if isinstance(block, FileBlock):
        return ImageSource(at, block.file.file_data, _file_name(block.file.filename))
    given = [one for one in (block.file_data, block.file_url) if one is not None]
    if len(given) != 1:
        raise ParameterError("An input_file block takes exactly one of file_data and file_url.")
    return ImageSource(at, given[0], _file_name(block.filename))


def _file_name(name: str | None) -> str:
    return name[:80] if name else "The file"
