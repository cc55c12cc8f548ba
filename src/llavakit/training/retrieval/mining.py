"""Hard negatives: for each query, the wrong pages that the adapter so far likes best."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from llavakit.training.retrieval.batches import PairCollator, Pairs
from llavakit.training.retrieval.contrast import Retriever, maxsim

MINED = "negatives-{epoch}.json"
"""In the run's directory: what an epoch was trained with, so that a resumed one goes on with it."""

_ROWS = 32


class Miner(TrainerCallback):  # type: ignore[misc]
    """Mines before every epoch but the first.

    Args:
        pairs: what is trained; its ``mined`` is set.
        collate: makes rows.
        count: hard negatives of each query.
        out: the run's directory.
        notify: is called with a remark.
    """

    def __init__(
        self,
        pairs: Pairs,
        collate: PairCollator,
        count: int,
        out: Path,
        notify: Callable[[str], object],
    ) -> None:
        self._pairs = pairs
        self._collate = collate
        self._count = count
        self._out = out
        self._notify = notify

    def on_epoch_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, **_: Any
    ) -> None:
        epoch = int(state.epoch or 0)
        if not self._count or not epoch:
            return
        file = self._out / MINED.format(epoch=epoch)
        if not file.is_file():
            self._notify(f"Mining {self._count} hard negatives for each query ...")
            retriever = model.module if hasattr(model, "module") else model
            found = mine(retriever, self._pairs, self._collate, self._count)
            if state.is_world_process_zero:
                file.write_text(json.dumps({str(key): one for key, one in found.items()}))
            self._pairs.mined = found
            return
        read: Mapping[str, list[int]] = json.loads(file.read_text())
        self._pairs.mined = {int(key): one for key, one in read.items()}


@torch.no_grad()
def mine(
    retriever: Retriever, pairs: Pairs, collate: PairCollator, count: int
) -> dict[int, list[int]]:
    """Return, for each item, indices of the records of its best wrong pages.

    Args:
        retriever: embeds; its mode is kept.
        pairs: all of them; every page is a candidate.
        collate: makes rows.
        count: how many for each.
    """
    training = retriever.training
    retriever.eval()
    records = [*pairs.report.good, *pairs.report.pages]
    device = next(retriever.parameters()).device
    digests: dict[str, int] = {}
    pages: list[tuple[Tensor, Tensor]] = []
    for chunk in _chunks(records):
        opened = [(record, pairs.page_of(record)) for record in chunk]
        fresh = [(record, one) for record, one in opened if one.digest not in digests]
        once = {one.digest: (record, one) for record, one in fresh}
        if once:
            digests |= {digest: record for digest, (record, _) in once.items()}
            rows = collate.rows([one.prompt for _, one in once.values()])
            pages.append(_embedded(retriever, rows, device))
    mined: dict[int, list[int]] = {}
    known = list(digests)
    for chunk in _chunks(range(len(pairs))):
        items = [pairs[index] for index in chunk]
        rows = collate.rows([item.prompt for item in items])
        queries = _embedded(retriever, rows, device)
        scores = torch.cat([maxsim(*queries, *page) for page in pages], dim=1)
        for index, item, row in zip(chunk, items, scores, strict=True):
            right = torch.tensor([digest in item.positives for digest in known])
            best = row.cpu().masked_fill(right, float("-inf")).topk(min(count, len(known))).indices
            mined[index] = [digests[known[at]] for at in best if not right[at]]
    retriever.train(training)
    return mined


def _embedded(retriever: Retriever, rows: dict[str, Tensor], device: Any) -> tuple[Tensor, Tensor]:
    return retriever.embed({name: one.to(device) for name, one in rows.items()})


def _chunks(items: Sequence[int]) -> Iterator[Sequence[int]]:
    for first in range(0, len(items), _ROWS):
        yield items[first : first + _ROWS]
