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
from torch.utils.data import Dataset
from transformers import LlavaForConditionalGeneration

from llavakit.demo.seen import GRID, LABELS
from llavakit.model.preprocess import ImagePreprocessor
from llavakit.training.demo_model import VISION_WIDTH
from llavakit.training.demo_pictures import Pictures, prepared, varied
from llavakit.training.demo_recipe import VisionPhase

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


class VisionSteps(Dataset[dict[str, torch.Tensor]]):
    """Pictures and their patch labels: item ``step * parts + part`` of a phase.

    Args:
        store: the pictures by their kinds; as many of each are used as the phase says.
        preprocess: of the demo model.
        phase: the shares, the seed and the size of a step.
        parts: into how many items a step is divided.
    """

    def __init__(
        self,
        store: Mapping[str, Pictures],
        preprocess: ImagePreprocessor,
        phase: VisionPhase,
        parts: int,
    ) -> None:
        self._store = store
        self._preprocess = preprocess
        self._phase = phase
        self._parts = parts

    def __len__(self) -> int:
        return self._phase.steps * self._parts

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        phase = self._phase
        rng = random.Random(f"vision {phase.seed} {index}")
        count = phase.pictures // self._parts
        scenes = round(count * phase.scene_share)
        pixels, labels = [], []
        for kind, most, wanted in (
            ("scene", phase.scenes, scenes),
            ("page", phase.pages, count - scenes),
        ):
            of = self._store[kind]
            chosen = [rng.randrange(min(most, len(of))) for _ in range(wanted)]
            pixels.append(of.pixels[chosen])
            labels.append(of.labels[chosen])
        drawn = varied(np.concatenate(pixels), rng)
        return {
            "pixels": prepared(drawn, self._preprocess),
            "patch_labels": torch.from_numpy(np.concatenate(labels)).long(),
        }
