"""From turns to a prompt's tokens, with the places of its images."""

from __future__ import annotations

from collections.abc import Callable

from llavakit.engine.sequence import ImageSpan
from llavakit.images import Picture
from llavakit.model.reader import Reader
from llavakit.prompts.conversation import Turn
from llavakit.values import Image

OpenPicture = Callable[[Image], Picture]


def encode(
    reader: Reader, turns: list[Turn], open_picture: OpenPicture
) -> tuple[list[int], tuple[ImageSpan, ...]]:
    """Tokenise a prompt, repeat each image's token, and find where the images stand."""
    parts = [part for turn in turns for part in turn.parts if isinstance(part, Image)]
    pictures = [open_picture(part) for part in parts]
    tokens: list[int] = []
    images: list[ImageSpan] = []
    for token in reader.tokenizer.encode(turns):
        if token == reader.special.image:
            picture = pictures[len(images)]
            pixels = reader.preprocess(picture, len(pictures))
            count = reader.layout.tokens(pixels.size, len(pictures))
            images.append(ImageSpan(len(tokens), count, pixels.key, pixels))
            tokens += [token] * count
        else:
            tokens.append(token)
    return tokens, tuple(images)
