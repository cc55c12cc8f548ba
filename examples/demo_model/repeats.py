"""First phase of the text model: repeating random tokens.

Copying a name from a prompt into an answer needs attention that finds an earlier occurrence and
reads what came next. Taught alone, from short repeats of few tokens to long ones of the whole
vocabulary, it emerges in minutes; taught by the real tasks at once it does not emerge at all.
"""

from __future__ import annotations

import random

import torch

from .recipe import RepeatPhase, Repeats
from .steps import Steps

FIRST_PLAIN_TOKEN = 3


class RepeatSteps(Steps[RepeatPhase, dict[str, torch.Tensor]]):
    """Rows of random tokens that repeat.

    An item is ``ids`` [B, L] and ``sure`` [B, L], true where the token can be known.
    """

    kind = "repeats"

    def item(self, step: int, rng: random.Random) -> dict[str, torch.Tensor]:
        """The rows of a part of a step, as difficult as it is late."""
        at = step / self.phase.steps
        repeats = [one for one in self.phase.repeats if one.begins <= at][-1]
        rows = [_row(repeats, rng) for _ in range(repeats.rows // self.parts)]
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
