"""First phase of the text model: repeating random tokens.

Copying a name from a prompt into an answer needs attention that finds an earlier occurrence and
reads what came next. Taught alone, from short repeats of few tokens to long ones of the whole
vocabulary, it emerges in minutes; taught by the real tasks at once it does not emerge at all.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from torch.nn import functional as F
from transformers import LlavaForConditionalGeneration

from llavakit.training.demo_model import text_states
from llavakit.training.muon import MuonAdamW

FIRST_PLAIN_TOKEN = 3


@dataclass(frozen=True)
class Stage:
    """A difficulty: how many different tokens, how long the repeated piece and the row are."""

    tokens: int
    shortest: int
    longest: int
    length: int
    batch: int


STAGES = (
    Stage(64, 3, 6, 48, 48),
    Stage(64, 3, 12, 48, 48),
    Stage(256, 3, 12, 64, 40),
    Stage(1848, 4, 20, 80, 32),
    Stage(1848, 2, 48, 160, 16),
)
PASS_MARK = 0.9


def repeats(stage: Stage, rng: random.Random) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ``(batch, length)`` rows and a mask of the positions that can be predicted."""
    rows, known = [], []
    for _ in range(stage.batch):
        row: list[int] = []
        sure: list[bool] = []
        vocabulary = range(FIRST_PLAIN_TOKEN, FIRST_PLAIN_TOKEN + stage.tokens)
        period = rng.randint(stage.shortest, stage.longest)
        piece = rng.sample(vocabulary, period)
        while len(row) < stage.length:
            # Rows of the later stages put noise between the copies, as a prompt does.
            noise = rng.randint(0, 8) if stage.length > 64 and rng.random() < 0.5 else 0
            filler = [rng.choice(vocabulary) for _ in range(noise)]
            first = not row
            row += piece + filler
            # The piece's first token is anyone's guess after noise, the others are not.
            sure += [not first and i > 0 for i in range(period)] + [False] * noise
        rows.append(row[: stage.length])
        known.append(sure[: stage.length])
    return torch.tensor(rows), torch.tensor(known)


def train_repeats(
    model: LlavaForConditionalGeneration, *, seed: int, steps: int, rate: float = 3e-3
) -> float:
    """Train the text model in place; return the accuracy at the end of the last stage reached."""
    rng = random.Random(seed)
    text = model.model.language_model
    optimizer = MuonAdamW(text.named_parameters(), matrix_rate=rate, other_rate=rate)
    level, average = 0, 0.0
    for step in range(steps):
        stage = STAGES[level]
        tokens, known = repeats(stage, rng)
        embedding = text.embed_tokens.weight
        states = text_states(model, text.embed_tokens(tokens))[:, :-1][known[:, 1:]]
        targets = tokens[:, 1:][known[:, 1:]]
        logits = states @ embedding.T
        loss = F.cross_entropy(logits, targets)
        torch.autograd.backward(loss)
        optimizer.step(factor=min(1.0, (step + 1) / 30, (steps - step) / 100))
        accuracy = float((logits.argmax(-1) == targets).float().mean())
        average = 0.95 * average + 0.05 * accuracy
        if step % 25 == 0:
            print(
                f"repeats {step:5d} level {level} loss {loss.item():.3f} acc {average:.3f}",
                flush=True,
            )
        if average > PASS_MARK and level + 1 < len(STAGES):
            level, average = level + 1, 0.5
    return average
