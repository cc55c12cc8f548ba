"""Dense patch labels: the first lesson of the vision tower, and an auxiliary loss ever after.

Every patch learns to say what is drawn in it (shape, colour, characters, title). It takes minutes,
and without it a tower this small learns from answers alone only very slowly.
"""

from __future__ import annotations

import random
from collections.abc import Mapping

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import LlavaForConditionalGeneration

from llavakit.model.preprocess import ImagePreprocessor

from .model import VISION_WIDTH
from .pictures import Pictures, prepared, varied
from .recipe import VisionPhase
from .steps import Steps
from .world.seen import GRID, LABELS

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


class VisionSteps(Steps[VisionPhase, dict[str, torch.Tensor]]):
    """Pictures and their patch labels.

    Args:
        phase: the shares, and the size of a step.
        parts: into how many items a step is divided.
        store: the pictures by their kinds.
        preprocess: of the demo model.
    """

    kind = "vision"

    def __init__(
        self,
        phase: VisionPhase,
        parts: int,
        store: Mapping[str, Pictures],
        preprocess: ImagePreprocessor,
    ) -> None:
        super().__init__(phase, parts)
        self._store = store
        self._preprocess = preprocess

    def item(self, step: int, rng: random.Random) -> dict[str, torch.Tensor]:
        """``pixels`` [N, 3, H, W] and ``patch_labels`` [N, kinds, patches]."""
        count = self.phase.pictures // self.parts
        scenes = round(count * self.phase.scene_share)
        pixels, labels = [], []
        for kind, wanted in (("scene", scenes), ("page", count - scenes)):
            of = self._store[kind]
            chosen = [rng.randrange(len(of)) for _ in range(wanted)]
            pixels.append(of.pixels[chosen])
            labels.append(of.labels[chosen])
        drawn = varied(np.concatenate(pixels), rng)
        return {
            "pixels": prepared(drawn, self._preprocess),
            "patch_labels": torch.from_numpy(np.concatenate(labels)).long(),
        }
