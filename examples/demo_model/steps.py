"""What a phase of the demo model's recipe learns from, step by step."""

from __future__ import annotations

import random
from abc import abstractmethod
from typing import ClassVar, Generic, TypeVar

from torch.utils.data import Dataset

from .recipe import Phase

PhaseT = TypeVar("PhaseT", bound=Phase)
ItemT = TypeVar("ItemT")


class Steps(Dataset[ItemT], Generic[PhaseT, ItemT]):
    """Parts of the steps of a phase: item ``step * parts + part``.

    An item depends on its number and the phase's seed alone: a run that goes on after a break, or
    on another number of processes, sees what an undisturbed one sees.

    Args:
        phase: with its steps and its seed.
        parts: into how many items a step is divided.
    """

    kind: ClassVar[str]
    """Keeps the items of different kinds of phases apart."""

    def __init__(self, phase: PhaseT, parts: int) -> None:
        self.phase = phase
        self.parts = parts

    def __len__(self) -> int:
        return self.phase.steps * self.parts

    def __getitem__(self, index: int) -> ItemT:
        if not 0 <= index < len(self):
            raise IndexError(index)
        rng = random.Random(f"{self.kind} {self.phase.seed} {index}")
        return self.item(index // self.parts, rng)

    @abstractmethod
    def item(self, step: int, rng: random.Random) -> ItemT:
        """A part of a step, drawn by a generator of its own."""
