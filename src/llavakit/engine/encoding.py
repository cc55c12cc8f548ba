"""From turns to a prompt's tokens, with the places of its images and videos."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llavakit.engine.sequence import ImageSpan
from llavakit.errors import UnsupportedContentError
from llavakit.model.layout import image_ids
from llavakit.model.preprocess import Pixels, seen_size
from llavakit.model.reader import Reader
from llavakit.model.videos import VideoPixels
from llavakit.prompts.conversation import Turn
from llavakit.values import Image, Text, Video

OpenMedia = Callable[[Image | Video], Any]
"""Opens an image (a :class:`~llavakit.images.Picture`) or a video (a
:class:`~llavakit.videos.Clip`)."""

Measure = Callable[[Image | Video], Any]
"""Width and height of an image in pixels, or the :class:`~llavakit.videos.Length` of a video."""


def encode(
    reader: Reader, turns: list[Turn], open_media: OpenMedia
) -> tuple[list[int], tuple[ImageSpan, ...]]:
    """Tokenise a prompt, repeat each image's or video's token, and find where they stand."""
    parts = _media(reader, turns)
    pictures = iter([open_media(part) for part in parts if isinstance(part, Image)])
    videos = iter([part for part in parts if isinstance(part, Video)])
    several = sum(isinstance(part, Image) for part in parts)
    tokens: list[int] = []
    images: list[ImageSpan] = []

    def span(pixels: Pixels | VideoPixels, ids: list[int]) -> None:
        images.append(ImageSpan(len(tokens), len(ids), pixels.key, pixels))
        tokens.extend(ids)

    for token in reader.tokenizer.encode(turns):
        if token == reader.special.image:
            pixels = reader.preprocess(next(pictures), several)
            span(pixels, image_ids(reader.layout, token, pixels.size, several))
        elif reader.videos is not None and token == reader.tokenizer.video_id:
            video = next(videos)
            frames, count = reader.videos(video, open_media(video))
            span(frames, [token] * count)
        else:
            tokens.append(token)
    return tokens, tuple(images)


def count(reader: Reader, turns: list[Turn], measure: Measure) -> int:
    """Count the tokens of a prompt.

    Args:
        reader: the half of the checkpoint that reads prompts.
        turns: the conversation.
        measure: width and height of an image, or the length of a video.
    """
    parts = _media(reader, turns)
    sizes = [seen_size(measure(part)) for part in parts if isinstance(part, Image)]
    tokens = sum(reader.layout.tokens(size, len(sizes)) for size in sizes)
    for part in parts:
        if isinstance(part, Video) and reader.videos is not None:
            tokens += reader.videos.tokens(part, measure(part))
    return len(reader.tokenizer.encode(turns)) - len(parts) + tokens


def _media(reader: Reader, turns: list[Turn]) -> list[Image | Video]:
    """The images and videos of a prompt.

    Raises:
        UnsupportedContentError: there is a video, and the model takes none.
    """
    parts = [part for turn in turns for part in turn.parts if not isinstance(part, Text)]
    if reader.videos is None and any(isinstance(part, Video) for part in parts):
        raise UnsupportedContentError(
            f"The model {reader.path.name} takes images and no videos; use one that does, such as "
            "llava-onevision-qwen2-7b or llava-next-video-7b, or send frames of the video as "
            "images.",
            public="This model takes images and no videos; send frames of the video as images.",
        )
    return parts
