"""First phase of the text model: repeating random tokens.

Copying a name from a prompt into an answer needs attention that finds an earlier occurrence and
reads what came next. Taught alone, from short repeats of few tokens to long ones of the whole
vocabulary, it emerges in minutes; taught by the real tasks at once it does not emerge at all.
"""

from __future__ import annotations

import random

import torch
from torch.utils.data import Dataset

from llavakit.training.demo_recipe import RepeatPhase, Repeats

FIRST_PLAIN_TOKEN = 3


class RepeatSteps(Dataset[dict[str, torch.Tensor]]):
    """Rows of random tokens that repeat: item ``step * parts + part`` of a phase.

    An item is ``ids`` [B, L] and ``sure`` [B, L], true where the token can be known.

    Args:
        phase: the difficulties and when they come, and the seed.
        parts: into how many items a step is divided.
    """

    def __init__(self, phase: RepeatPhase, parts: int) -> None:
        self._phase = phase
        self._parts = parts

    def __len__(self) -> int:
        return self._phase.steps * self._parts

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        rng = random.Random(f"repeats {self._phase.seed} {index}")
        at = index // self._parts / self._phase.steps
        repeats = [one for one in self._phase.repeats if one.begins <= at][-1]
        rows = [_row(repeats, rng) for _ in range(repeats.rows // self._parts)]
        ids, sure = zip(*rows, strict=True)
        return {"ids": torch.tensor(ids), "sure": torch.tensor(sure)}


def _row(repeats: Repeats, rng: random.Random) -> tuple[list[int], list[bool]]:
    row: list[int] = []
    sure: list[bool] = []
    vocabulary = range(FIRST_PLAIN_TOKEN, FIRST_PLAIN_TOKEN + repeats.tokens)
    period = rng.randint(repeats.shortest, repeats.longest)
    piece = rng.sample(vocabulary, period)
    while len(row) < repeats.length:
        # Long rows put noise between the copies, as a prompt does.
        noise = rng.randint(0, 8) if repeats.length > 64 and rng.random() < 0.5 else 0
        filler = [rng.choice(vocabulary) for _ in range(noise)]
        first = not row
        row += piece + filler
        # The piece's first token is anyone's guess after noise, the others are not.
        sure += [not first and i > 0 for i in range(period)] + [False] * noise
    return row[: repeats.length], sure[: repeats.length]
