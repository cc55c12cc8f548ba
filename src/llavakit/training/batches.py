"""What data loaders read: examples one by one, or those about the same images together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llavakit.errors import CheckpointError, LlavaKitError
from llavakit.model.reader import Reader
from llavakit.training.data import FaultyRecord, conversation_of
from llavakit.training.data_check import Report
from llavakit.training.data_files import Records
from llavakit.training.examples import Collator, Encoder, Example
from llavakit.training.sharing import SharingCollator, groups


@dataclass(frozen=True, slots=True)
class Examples:
    """Records as examples.

    Attributes:
        records: the data.
        good: indices of the records that are used.
        folder: where relative paths of images begin.
        encode: makes an example of a conversation.
    """

    records: Records
    good: tuple[int, ...]
    folder: Path | None
    encode: Encoder

    def __len__(self) -> int:
        return len(self.good)

    def __getitem__(self, index: int) -> Example:
        at = self.good[index]
        try:
            return self.encode(conversation_of(self.records[at], self.folder, assistant_first=True))
        except (FaultyRecord, LlavaKitError) as error:
            raise CheckpointError(
                f"{self.records.name}, {self.records.places[at]}: {error} (it was right when "
                "the data was looked through; files have changed since)"
            ) from error


@dataclass(frozen=True, slots=True)
class Circles:
    """Examples that are learnt together.

    Attributes:
        examples: all.
        members: indices of those of each circle.
    """

    examples: Examples
    members: tuple[tuple[int, ...], ...]

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, index: int) -> list[Example]:
        return [self.examples[at] for at in self.members[index]]


@dataclass(frozen=True, slots=True)
class Batches:
    """How a trainer gets its batches.

    Attributes:
        dataset: what a batch is made of.
        lengths: tokens of each item, negative for those without images.
        collate: makes a batch of items.
    """

    dataset: Examples | Circles
    lengths: tuple[int, ...]
    collate: Callable[[Any], dict[str, Any]]


def collator_of(reader: Reader) -> Collator:
    """What makes batches for a checkpoint."""
    padding = reader.tokenizer.tokenizer.pad_token_id
    return Collator(0 if padding is None else int(padding), reader.config.model_type)


def batches(examples: Examples, report: Report, reader: Reader, *, share: bool) -> Batches:
    """Each example alone, or those about the same images together.

    Args:
        examples: all.
        report: on them.
        reader: of the checkpoint.
        share: whether examples share images; a row then has the most tokens that one may have.
    """
    collate = collator_of(reader)
    if not share:
        return Batches(examples, report.lengths, collate)
    members, lengths = groups(report.lengths, report.beginnings, examples.encode.max_length)
    return Batches(Circles(examples, members), lengths, SharingCollator(collate))
