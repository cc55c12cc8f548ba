"""From conversations to the model's inputs: tokens, labels and pixels as when it answers.

Tokens, pixels and the number of an image's tokens come from the same code that prepares
prompts for the engine, so that training and use cannot disagree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llavakit.errors import ImageDecodeError, MessageError, SourceNotFoundError
from llavakit.images import Picture, open_picture
from llavakit.model.families import SINGLE_VIEW
from llavakit.model.layout import Size
from llavakit.model.preprocess import Pixels, seen_size
from llavakit.model.reader import Reader
from llavakit.sources import SourcePolicy
from llavakit.training.data import FaultyRecord, Record
from llavakit.training.labels import IGNORED, LabelledTokens, label
from llavakit.values import Image

if TYPE_CHECKING:
    from torch import Tensor

POLICY = SourcePolicy(allow_urls=False)
"""Training reads files that its caller named, and fetches nothing."""

_TURNED = range(5, 9)
"""EXIF orientations that exchange width and height."""


@dataclass(frozen=True, slots=True)
class Example:
    """One conversation as the model reads it.

    Attributes:
        ids: tokens, each image as many image tokens as it has features.
        labels: what is learnt of them.
        pixels: its images, not yet preprocessed.
    """

    ids: tuple[int, ...]
    labels: tuple[int, ...]
    pixels: tuple[Pixels, ...]


@dataclass(frozen=True, slots=True)
class Encoder:
    """Makes examples for one checkpoint.

    Attributes:
        reader: of the checkpoint.
        max_length: the most tokens of an example, images included.
        cut: whether what is longer is cut, as the original did.
    """

    reader: Reader
    max_length: int
    cut: bool = False

    def __call__(self, conversation: Record) -> Example:
        """The example of a conversation; opens its images.

        Raises:
            FaultyRecord: too long, or nothing in it can be learnt.
            LlavaKitError: an image cannot be used.
        """
        pictures = [open_picture(image.source, POLICY) for image in conversation.pictures]
        pixels = tuple(self.reader.preprocess(one, len(pictures)) for one in pictures)
        made = self.tokens(conversation, [one.size for one in pixels])
        return Example(made.ids, made.labels, pixels)

    def tokens(self, conversation: Record, sizes: Sequence[Size]) -> LabelledTokens:
        """The tokens of a conversation whose images have these sizes, and what is learnt.

        Args:
            conversation: the conversation; its images are not opened.
            sizes: (width, height) that the processor sees of each.

        Raises:
            FaultyRecord: too long, or nothing in it can be learnt.
        """
        made = self._expanded(conversation, sizes)
        return made if len(made.ids) <= self.max_length else self._shortened(made)

    def measured(self, conversation: Record, sizes: Sequence[Size]) -> tuple[LabelledTokens, bool]:
        """The tokens of a conversation whose image files have these sizes, and whether it is cut.

        Args:
            conversation: the conversation.
            sizes: (width, height) of its images.

        Raises:
            FaultyRecord: as for :meth:`__call__`.
        """
        made = self._expanded(conversation, [seen_size(size) for size in sizes])
        if len(made.ids) <= self.max_length:
            return made, False
        return self._shortened(made), True

    def _expanded(self, conversation: Record, sizes: Sequence[Size]) -> LabelledTokens:
        try:
            made = label(self.reader.tokenizer, conversation.turns)
        except MessageError as error:
            raise FaultyRecord("no-labels", str(error)) from error
        image = self.reader.tokenizer.image_id
        counts = iter([self.reader.layout.tokens(size, len(sizes)) for size in sizes])
        ids: list[int] = []
        labels: list[int] = []
        for one, learnt in zip(made.ids, made.labels, strict=True):
            repeated = next(counts) if one == image else 1
            ids += [one] * repeated
            labels += [learnt] * repeated
        return LabelledTokens(tuple(ids), tuple(labels))

    def _shortened(self, made: LabelledTokens) -> LabelledTokens:
        reason = f"it has {len(made.ids)} tokens, and max_length is {self.max_length}"
        if not self.cut:
            raise FaultyRecord("over-length", reason)
        kept = LabelledTokens(made.ids[: self.max_length], made.labels[: self.max_length])
        if self.reader.tokenizer.image_id in made.ids[self.max_length :]:
            raise FaultyRecord("uncuttable", f"{reason}; cut there, an image would be cut")
        if not kept.learnt:
            raise FaultyRecord("uncuttable", f"{reason}; cut there, nothing is left to learn")
        return kept


def picture_size(image: Image, *, decode: bool) -> Size:
    """Width and height of an image in pixels, upright.

    Args:
        image: the image.
        decode: whether it is decoded as a whole, which finds every damage, or only its head.

    Raises:
        LlavaKitError: it is not there, or no image.
    """
    source = image.source
    if isinstance(source, Picture):
        return source.size
    if decode or not isinstance(source, Path):
        return open_picture(source, POLICY).size
    from PIL import Image as PILImage

    try:
        with PILImage.open(source) as opened:
            width, height = opened.size
            turned = opened.getexif().get(0x0112) in _TURNED
    except FileNotFoundError as error:
        raise SourceNotFoundError(f"There is no file {source!s}.") from error
    except (OSError, ValueError, SyntaxError) as error:
        raise ImageDecodeError(f"{source!s} cannot be read: {error}") from error
    return (height, width) if turned else (width, height)


@dataclass(frozen=True, slots=True)
class Collator:
    """Examples of a batch as the keyword arguments of an HF LLaVA model.

    Attributes:
        padding: the id that fills short rows; masked everywhere.
        family: ``model_type`` of the checkpoint.
    """

    padding: int
    family: str

    def __call__(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """``input_ids``, ``labels`` and ``attention_mask`` are [B, L], padded on the right."""
        import torch

        length = max(len(one.ids) for one in examples)

        def rows(kind: str, filler: int) -> Tensor:
            values = [getattr(one, kind) for one in examples]
            return torch.tensor([[*row, *[filler] * (length - len(row))] for row in values])

        seen = [[1] * len(one.ids) + [0] * (length - len(one.ids)) for one in examples]
        batch = {
            "input_ids": rows("ids", self.padding),
            "labels": rows("labels", IGNORED),
            "attention_mask": torch.tensor(seen),
        }
        return batch | self.pictures(examples)

    def pictures(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """The images of examples, in their order."""
        import torch

        inputs: list[dict[str, Any]] = [p.inputs() for one in examples for p in one.pixels]
        if not inputs:
            return {}
        views = [one["pixel_values"] for one in inputs]
        if self.family in SINGLE_VIEW:
            return {"pixel_values": torch.cat(views)}
        from llavakit.model.llava import stacked

        sizes = [one.get("image_sizes", torch.tensor([1, 1])) for one in inputs]
        made = {"pixel_values": stacked(views), "image_sizes": torch.stack(sizes)}
        if self.family == "llava_onevision":
            counts = [len(one.pixels) for one in examples if one.pixels]
            made["batch_num_images"] = torch.tensor(counts)
        return made
