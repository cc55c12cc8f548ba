"""Dense patch labels: the first lesson of the vision tower, and an auxiliary loss ever after.

Every patch learns to say what is drawn in it (shape, colour, characters, title). It takes minutes,
and without it a tower this small learns from answers alone only very slowly.
"""

from __future__ import annotations

import random

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F
from transformers import LlavaForConditionalGeneration

from llavakit.demo.seen import GRID, LABELS
from llavakit.training.demo_model import VISION_WIDTH, patch_features
from llavakit.training.demo_pictures import Pictures, normalise
from llavakit.training.muon import MuonAdamW

WEIGHTS = {"centre": 0.5, "line": 0.5, "title": 0.5, "name": 0.5}


class PatchHeads(nn.Module):
    """One linear classifier for all kinds of patch labels; not part of the checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(VISION_WIDTH)
        self.head = nn.Linear(VISION_WIDTH, sum(LABELS.values()))

    def loss(
        self, features: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """Return loss and accuracies where something is drawn; labels are ``(n, kinds, 64)``."""
        scores = self.head(self.norm(features)).split(list(LABELS.values()), dim=-1)
        total = features.new_zeros(())
        right: dict[str, float] = {}
        for index, (kind, score) in enumerate(zip(LABELS, scores, strict=True)):
            target = labels[:, index]
            something = target > 0
            # Most patches are empty: they count, but must not drown the others.
            each = F.cross_entropy(score.flatten(0, 1), target.flatten(), reduction="none")
            weight = torch.where(something.flatten(), 1.0, 0.2)
            total = total + WEIGHTS.get(kind, 1.0) * (each * weight).sum() / (weight.sum() + 1)
            if something.any():
                hit = score.argmax(-1)[something] == target[something]
                right[kind] = float(hit.float().mean())
        return total, right


def varied(pixels: NDArray[np.uint8], rng: random.Random) -> NDArray[np.uint8]:
    """Return pictures with a little noise, other brightness or one pixel of shift, at random."""
    out = pixels.astype(np.int16)
    noise = np.random.default_rng(rng.getrandbits(32))
    for index in range(len(out)):
        if rng.random() < 0.4:
            out[index] += noise.integers(-6, 7, out[index].shape, dtype=np.int16)
        if rng.random() < 0.3:
            out[index] = (out[index] * rng.uniform(0.94, 1.05)).astype(np.int16)
        if rng.random() < 0.4:
            shift = (rng.randint(-1, 1), rng.randint(-1, 1))
            out[index] = np.roll(out[index], shift, axis=(0, 1))
    return out.clip(0, 255).astype(np.uint8)


@torch.no_grad()
def amplify_positions(model: LlavaForConditionalGeneration, rows: float, columns: float) -> None:
    """Multiply what the position embeddings say of row and column.

    Patch labels teach little about where a patch is; a question after a place needs to see it.
    """
    weight = model.model.vision_tower.embeddings.position_embedding.weight[1:]
    board = weight.view(GRID, GRID, -1)
    centred = board - board.mean(dim=(0, 1))
    of_rows, of_columns = centred.mean(1, keepdim=True), centred.mean(0, keepdim=True)
    board += (rows - 1) * of_rows + (columns - 1) * of_columns


def train_vision(
    model: LlavaForConditionalGeneration,
    heads: PatchHeads,
    scenes: Pictures,
    pages: Pictures,
    *,
    seed: int,
    steps: int,
    batch: int = 48,
    scene_share: float = 0.5,
    rate: float = 2e-2,
) -> dict[str, float]:
    """Train tower and heads in place on patch labels; return the last accuracies (averaged)."""
    rng = random.Random(seed)
    tower = model.model.vision_tower
    named = [(f"tower.{name}", p) for name, p in tower.named_parameters()]
    named = [(n, p) for n, p in named if "layers.4." not in n and "post_layernorm" not in n]
    named += [(f"patch_{name}", p) for name, p in heads.named_parameters()]
    optimizer = MuonAdamW(named, matrix_rate=rate, other_rate=3e-3)
    average: dict[str, float] = {}
    for step in range(steps):
        half = round(batch * scene_share)
        chosen = [rng.randrange(len(scenes)) for _ in range(half)]
        read = [rng.randrange(len(pages)) for _ in range(batch - half)]
        pixels = np.concatenate([scenes.pixels[chosen], pages.pixels[read]])
        labels = np.concatenate([scenes.labels[chosen], pages.labels[read]])
        features = patch_features(model, normalise(varied(pixels, rng)))
        loss, right = heads.loss(features, torch.from_numpy(labels).long())
        torch.autograd.backward(loss)
        optimizer.step(factor=min(1.0, (step + 1) / 40, (steps - step) / (0.3 * steps)))
        for kind, value in right.items():
            average[kind] = 0.9 * average.get(kind, value) + 0.1 * value
        if step % 20 == 0:
            line = " ".join(f"{kind} {value:.2f}" for kind, value in average.items())
            print(f"vision {step:5d} loss {loss.item():.3f} {line}", flush=True)
    return average
