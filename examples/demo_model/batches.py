"""Lessons as batches: labelled by the trainer's own labels, packed by its own packing."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

import numpy as np
import torch

from llavakit.training.data import FaultyRecord
from llavakit.training.examples import Encoder
from llavakit.training.labels import IGNORED
from llavakit.training.packing import Tree, pack, tree

from .lessons import Lesson, LessonBook
from .model import MAX_POSITIONS
from .pictures import Pictures, prepared, varied
from .recipe import LessonPhase
from .steps import Steps
from .world.seen import GRID, LABELS, SIDE, place_labels

ROW_LENGTH = 272
"""Attention costs the square of a row's length: most trees fit in a row of this, and long ones have
rows of their own."""
LONGEST_TREE = 900
FARTHEST = 2500

Batch = dict[str, Any]


class LessonSteps(Steps[LessonPhase, list[Batch]]):
    """Lessons, packed.

    An item is up to two batches: rows of ordinary length, and longer ones. A batch holds what
    :class:`~llavakit.training.packing.Rows` does, and

    - ``weights`` [B, L]: of each token in the loss;
    - ``tasks``: of each answer, in the order in which answers stand in the rows;
    - ``pixels`` [N, 3, H, W], ``patch_labels`` [N, kinds, patches], ``places`` [N, 2, patches].

    Args:
        phase: the mix, and the length of a step in tokens.
        parts: into how many items a step is divided.
        store: the pictures by their kinds.
        encoder: of the demo model.
    """

    kind = "lessons"

    def __init__(
        self, phase: LessonPhase, parts: int, store: Mapping[str, Pictures], encoder: Encoder
    ) -> None:
        super().__init__(phase, parts)
        self._encoder = replace(encoder, max_length=LONGEST_TREE)
        self._store = store
        farthest = min(FARTHEST, MAX_POSITIONS - LONGEST_TREE)
        self._book = LessonBook(store, phase.tasks, farthest=farthest)

    def item(self, step: int, rng: random.Random) -> list[Batch]:
        """The batches of a part of a step."""
        grown = self._grown(rng)
        long = [(lesson, one) for lesson, one in grown if len(one) > ROW_LENGTH]
        short = [(lesson, one) for lesson, one in grown if len(one) <= ROW_LENGTH]
        return [self._batch(part, rng) for part in (long, short) if part]

    def _grown(self, rng: random.Random) -> list[tuple[Lesson, Tree]]:
        """Lessons of about as many tokens as an item has: processes then wait little."""
        mix, budget = self.phase.mix, self.phase.tokens // self.parts
        grown: list[tuple[Lesson, Tree]] = []
        used = 0
        while used < budget:
            lesson = self._book.draw(rng.choices(list(mix), list(mix.values()))[0], rng)
            try:
                one = self.tree(lesson)
            except FaultyRecord as fault:
                if fault.kind != "over-length":
                    raise
                continue
            if len(one) <= min(LONGEST_TREE, max(budget - used + 80, ROW_LENGTH)):
                grown.append((lesson, one))
                used += len(one)
        return grown

    def tree(self, lesson: Lesson) -> Tree:
        """The tokens of a lesson."""
        sizes = [(SIDE, SIDE)] * len(lesson.pictures)
        grown = tree([self._encoder.tokens(one, sizes) for one in lesson.conversations])
        if not lesson.gap:
            return grown
        prompts = self._encoder.reader.tokenizer
        system = lesson.conversations[0].turns[0]
        assert system.role == "system"
        at = len(prompts.tokenize(prompts.said(system)))
        far = [one + lesson.gap for one in grown.positions[at:]]
        return replace(grown, positions=(*grown.positions[:at], *far))

    def _batch(self, grown: Sequence[tuple[Lesson, Tree]], rng: random.Random) -> Batch:
        reader = self._encoder.reader
        padding = int(reader.tokenizer.tokenizer.pad_token_id)
        rows = pack([one for _, one in grown], ROW_LENGTH, padding)
        lessons = [grown[number][0] for number in rows.order]
        weights = torch.tensor([_weights(row) for row in rows.labels.tolist()])
        batch: Batch = {
            "ids": rows.ids,
            "labels": rows.labels,
            "positions": rows.positions,
            "seen": rows.seen,
            "weights": weights,
            "tasks": [t for one in lessons for told in one.tasks for t in told],
        }
        return batch | self._pictures([shown for one in lessons for shown in one.pictures], rng)

    def _pictures(self, chosen: Sequence[tuple[str, int]], rng: random.Random) -> Batch:
        if not chosen:
            return {}
        store = self._store
        pixels = np.stack([store[kind].pixels[index] for kind, index in chosen])
        patches = np.stack([store[kind].labels[index] for kind, index in chosen])
        assert patches.shape[1:] == (len(LABELS), GRID * GRID)
        places = [place_labels(store[kind].described(index)) for kind, index in chosen]
        return {
            "pixels": prepared(varied(pixels, rng), self._encoder.reader.preprocess),
            "patch_labels": torch.from_numpy(patches).long(),
            "places": torch.tensor(places, dtype=torch.long),
        }


def _weights(labels: Sequence[int]) -> list[float]:
    """Long answers count more than short ones, but not in proportion to their length."""
    weights: list[float] = []
    for learnt, run in groupby(labels, lambda label: label != IGNORED):
        length = len(list(run))
        weights += [length**-0.5 if learnt else 0.0] * length
    return weights
