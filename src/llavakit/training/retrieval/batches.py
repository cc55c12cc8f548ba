"""Pairs as the model reads them: the prompts that the engine embeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llavakit.engine.embedding import Prompt, prompt_of
from llavakit.errors import CheckpointError, LlavaKitError
from llavakit.images import open_picture
from llavakit.model.reader import Reader
from llavakit.training.data_files import Records
from llavakit.training.examples import POLICY, Collator, Example
from llavakit.training.record_keys import FaultyRecord
from llavakit.training.retrieval.pairs import PairReport, pair_of
from llavakit.values import Image, Video


@dataclass(frozen=True, slots=True)
class PageItem:
    """A page: its prompt, and the digest of its image."""

    prompt: Prompt
    digest: str


@dataclass(frozen=True, slots=True)
class Item:
    """A query with its page and pages that do not answer it.

    Attributes:
        query: its text.
        prompt: of the query.
        page: answers it.
        negatives: others.
        positives: digests of all images that answer the query.
    """

    query: str
    prompt: Prompt
    page: PageItem
    negatives: tuple[PageItem, ...]
    positives: frozenset[str]


@dataclass(slots=True)
class Pairs:
    """Records as items.

    Attributes:
        records: the data.
        report: on it.
        folder: where relative paths of images begin.
        reader: of the checkpoint.
        mined: for an item, indices of records whose pages are hard negatives.
    """

    records: Records
    report: PairReport
    folder: Path | None
    reader: Reader
    mined: Mapping[int, Sequence[int]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.report.good)

    def __getitem__(self, index: int) -> Item:
        at = self.report.good[index]
        try:
            pair = pair_of(self.records[at], self.folder)
            assert pair.query is not None, "only records with a query are good"
            others = [*pair.negatives, *(self._image(one) for one in self.mined.get(index, ()))]
            return Item(
                pair.query,
                prompt_of(self.reader, pair.query, _no_image),
                self.page(pair.image),
                tuple(self.page(one) for one in others),
                self.report.positives[pair.query],
            )
        except (FaultyRecord, LlavaKitError) as error:
            raise CheckpointError(
                f"{self.records.name}, {self.records.places[at]}: {error} (it was right when "
                "the data was looked through; files have changed since)"
            ) from error

    def page(self, image: Image) -> PageItem:
        """Open a page."""
        picture = open_picture(image.source, POLICY)
        return PageItem(prompt_of(self.reader, image, lambda _: picture), picture.digest)

    def page_of(self, record: int) -> PageItem:
        """Open the page of a record."""
        return self.page(self._image(record))

    def _image(self, record: int) -> Image:
        return pair_of(self.records[record], self.folder).image


def _no_image(image: Image | Video) -> Any:
    raise AssertionError("a query holds words alone")


@dataclass(frozen=True, slots=True)
class PairCollator:
    """Items of a batch as the arguments of :class:`~.contrast.Retriever`.

    Attributes:
        alone: makes batches of rows.
    """

    alone: Collator

    def __call__(self, items: Sequence[Item]) -> dict[str, Any]:
        """``queries`` and ``pages`` are batches of rows; ``positive`` is [Q, P], bool."""
        pages = {
            one.digest: one for item in items for one in (item.page, *item.negatives)
        }  # each page once
        positive = [[digest in item.positives for digest in pages] for item in items]
        return {
            "queries": self.rows([item.prompt for item in items]),
            "pages": self.rows([one.prompt for one in pages.values()]),
            "positive": torch.tensor(positive),
        }

    def rows(self, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """Return arguments of the HF model, and ``wanted`` [B, L]: the tokens to embed."""
        made = self.alone(
            [
                Example(
                    tuple(one.tokens),
                    (0,) * len(one.tokens),
                    tuple(image.pixels for image in one.images),
                )
                for one in prompts
            ]
        )
        del made["labels"]
        wanted = torch.zeros_like(made["input_ids"], dtype=torch.bool)
        for row, one in zip(wanted, prompts, strict=True):
            row[one.first : one.last] = True
        return {**made, "wanted": wanted}
