"""The losses of a joint step: answers, patch labels, and patches that mean words."""

from __future__ import annotations

import random

import torch
from torch import nn
from torch.nn import functional as F
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from llavakit.demo.pages import CHARACTERS, NAMES, TITLES
from llavakit.demo.scenes import COLOURS, SHAPES
from llavakit.demo.seen import LABELS
from llavakit.training.demo_data import IGNORED, Batch
from llavakit.training.demo_model import TEXT_WIDTH, patch_features, text_states
from llavakit.training.demo_pictures import normalise
from llavakit.training.demo_vision import PatchHeads, varied

SHARPNESS = 12.0
PLACE_WEIGHT = 4.0
"""Places are the hardest for the tower to tell."""


class WordAlignment(nn.Module):
    """Pulls a projected patch towards the embedding of the word for what is drawn in it.

    Met directly, a word in a question finds the patches that show it. The characters of the two
    halves of a patch are words of one kind, so each half has a turn of the space of its own.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        super().__init__()
        words = {
            "shape": [f" {shape}" for shape in SHAPES],
            "colour": [f" {colour}" for colour in COLOURS],
            "left": list(CHARACTERS),
            "right": list(CHARACTERS),
            "title": list(TITLES),
            "name": list(NAMES),
            "row": [" top", " center", " bottom"],
            "column": [" left", " center", " right"],
        }
        self.kinds = list(words)
        for kind, texts in words.items():
            first = [tokenizer.encode(text, add_special_tokens=False)[0] for text in texts]
            self.register_buffer(f"words_{kind}", torch.tensor(first), persistent=False)
        self.turns = nn.ParameterDict(
            {kind: nn.Parameter(torch.eye(TEXT_WIDTH)) for kind in ("left", "right")}
        )

    def loss(
        self,
        projected: torch.Tensor,
        labels: torch.Tensor,
        places: torch.Tensor,
        embedding: torch.Tensor,
    ) -> torch.Tensor:
        """Return the cross-entropy of the right word among the words of its kind."""
        total = projected.new_zeros(())
        targets = dict(zip(LABELS, labels.unbind(1), strict=True))
        targets["row"], targets["column"] = places.unbind(1)
        for kind in self.kinds:
            target = targets[kind]
            there = target > 0
            if not there.any():
                continue
            patches = projected[there]
            if kind in self.turns:
                patches = patches @ self.turns[kind]
            words = embedding[getattr(self, f"words_{kind}")].detach()
            # What tells the words of a kind apart, without what they have in common.
            words = words - words.mean(dim=0)
            logits = SHARPNESS * F.normalize(patches, dim=-1) @ F.normalize(words, dim=-1).T
            weight = PLACE_WEIGHT if kind in ("row", "column") else 1.0
            total = total + weight * F.cross_entropy(logits, target[there] - 1)
        return total / len(self.kinds)


def joint_loss(
    model: LlavaForConditionalGeneration,
    heads: PatchHeads,
    alignment: WordAlignment,
    batch: Batch,
    rng: random.Random,
    tally: dict[str, tuple[int, int]],
    *,
    patch_weight: float = 0.1,
    word_weight: float = 0.3,
) -> tuple[torch.Tensor, dict[str, float]]:
    """Return the loss of a packed batch and what it is made of.

    ``tally`` gets (all tokens right, asked) for every task: greedy answers, as the right beginning
    is given, are right exactly if all their tokens are.
    """
    text = model.model.language_model
    embeds = text.embed_tokens(batch.tokens)
    parts: dict[str, float] = {}
    extra = embeds.new_zeros(())
    if len(batch.pixels):
        features = patch_features(model, normalise(varied(batch.pixels, rng)))
        projected = model.model.multi_modal_projector(features)
        patch, _ = heads.loss(features, batch.patch_labels)
        word = alignment.loss(projected, batch.patch_labels, batch.places, text.embed_tokens.weight)
        extra = patch_weight * patch + word_weight * word
        parts |= {"patch": patch.item(), "word": word.item()}
        images = batch.tokens == model.config.image_token_id
        embeds = embeds.masked_scatter(images[..., None], projected.to(embeds.dtype))
    states = text_states(model, embeds, batch.mask, batch.positions)
    learnt = batch.labels[:, 1:] != IGNORED
    targets, weights = batch.labels[:, 1:][learnt], batch.weights[:, 1:][learnt]
    logits = states[:, :-1][learnt] @ text.embed_tokens.weight.T
    each = F.cross_entropy(logits, targets, reduction="none")
    answers = (each * weights).sum() / weights.sum()
    parts["answers"] = answers.item()
    parts["tokens right"] = (logits.argmax(-1) == targets).float().mean().item()
    hits = torch.ones_like(learnt)
    hits[learnt] = logits.argmax(-1) == targets
    for task, row, first, end in batch.answers:
        right, asked = tally.get(task, (0, 0))
        tally[task] = (right + bool(hits[row, first - 1 : end - 1].all()), asked + 1)
    return answers + extra, parts
