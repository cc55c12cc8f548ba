"""What the phases of the demo model minimise: patch labels, repeats, answers with both beside."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from llavakit.training.labels import IGNORED

from .model import TEXT_WIDTH, patch_features, text_states
from .vision import PatchHeads
from .world.pages import CHARACTERS, NAMES, TITLES
from .world.scenes import COLOURS, SHAPES
from .world.seen import LABELS

SHARPNESS = 12.0
PLACE_WEIGHT = 4.0
"""Places are the hardest for the tower to tell."""

Found = dict[str, Any]
"""``loss``, what it is made of as floats, and ``right``: (task, whether all tokens were right)
of every answer."""


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


class Learner(nn.Module):
    """The demo model with what helps it learn and is not part of the checkpoint.

    Args:
        llava: the model.
        tokenizer: its tokenizer.
    """

    def __init__(
        self, llava: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        super().__init__()
        self.llava = llava
        self.heads = PatchHeads()
        self.alignment = WordAlignment(tokenizer)


class Task(nn.Module):
    """What a phase minimises.

    Args:
        learner: what learns.
    """

    def __init__(self, learner: Learner) -> None:
        super().__init__()
        self.learner = learner


class PatchTask(Task):
    """Say of every patch what is drawn in it."""

    def forward(self, item: dict[str, torch.Tensor]) -> Found:
        """The loss of an item of :class:`~examples.demo_model.vision.VisionSteps`."""
        features = patch_features(self.learner.llava, item["pixels"])
        loss, right = self.learner.heads.loss(features, item["patch_labels"])
        return {"loss": loss, **{f"patch {kind}": value for kind, value in right.items()}}


class RepeatTask(Task):
    """Go on with what was read before."""

    def forward(self, item: dict[str, torch.Tensor]) -> Found:
        """The loss of an item of :class:`~examples.demo_model.repeats.RepeatSteps`."""
        text = self.learner.llava.model.language_model
        sure = item["sure"][:, 1:]
        states = text_states(self.learner.llava, text.embed_tokens(item["ids"]))[:, :-1][sure]
        targets = item["ids"][:, 1:][sure]
        logits = states @ text.embed_tokens.weight.T
        right = (logits.argmax(-1) == targets).float().mean().item()
        return {"loss": F.cross_entropy(logits, targets), "tokens right": right}


class AnswerTask(Task):
    """Answer; with pictures, say what is in their patches, and mean words by them.

    Args:
        learner: what learns.
        patch_weight: of the patch labels' loss; 0 leaves it out.
        word_weight: of the word alignment's loss; 0 leaves it out.
    """

    def __init__(self, learner: Learner, *, patch_weight: float, word_weight: float) -> None:
        super().__init__(learner)
        self.patch_weight = patch_weight
        self.word_weight = word_weight

    def forward(self, item: list[dict[str, Any]]) -> Found:
        """The loss of an item of :class:`~examples.demo_model.batches.LessonSteps`."""
        answers = sum(float(batch["weights"].sum()) for batch in item)
        found: Found = {"loss": 0.0, "right": []}
        for batch in item:
            share = float(batch["weights"].sum()) / answers
            part = self._batch(batch)
            found["right"] += part.pop("right")
            for name, value in part.items():
                found[name] = found.get(name, 0.0) + share * value
        return found

    def _batch(self, batch: dict[str, Any]) -> Found:
        llava = self.learner.llava
        text = llava.model.language_model
        embeds = text.embed_tokens(batch["ids"])
        found: Found = {}
        beside: Any = 0.0
        if "pixels" in batch:
            features = patch_features(llava, batch["pixels"])
            projected = llava.model.multi_modal_projector(features)
            beside = self._beside(batch, features, projected, found)
            images = batch["ids"] == llava.config.image_token_id
            embeds = embeds.masked_scatter(images[..., None], projected.to(embeds.dtype))
        states = text_states(llava, embeds, batch["seen"], batch["positions"])
        learnt = batch["labels"][:, 1:] != IGNORED
        targets, weights = batch["labels"][:, 1:][learnt], batch["weights"][:, 1:][learnt]
        logits = states[:, :-1][learnt] @ text.embed_tokens.weight.T
        each = F.cross_entropy(logits, targets, reduction="none")
        answers = (each * weights).sum() / weights.sum()
        hits = logits.argmax(-1) == targets
        found["answers"] = answers.item()
        found["tokens right"] = hits.float().mean().item()
        found["right"] = list(zip(batch["tasks"], _whole(hits, learnt), strict=True))
        return {"loss": answers + beside, **found}

    def _beside(
        self,
        batch: dict[str, Any],
        features: torch.Tensor,
        projected: torch.Tensor,
        found: Found,
    ) -> torch.Tensor:
        total = features.new_zeros(())
        labels = batch["patch_labels"]
        if self.patch_weight:
            patch, _ = self.learner.heads.loss(features, labels)
            total = total + self.patch_weight * patch
            found["patch"] = patch.item()
        if self.word_weight:
            words = self.learner.llava.model.language_model.embed_tokens.weight
            word = self.learner.alignment.loss(projected, labels, batch["places"], words)
            total = total + self.word_weight * word
            found["word"] = word.item()
        return total


def _whole(hits: torch.Tensor, learnt: torch.Tensor) -> list[bool]:
    """Whether each answer, a run of learnt tokens, is right as a whole.

    Greedy answers, as the right beginning is given, are right exactly if all their tokens are.
    """
    before = torch.zeros_like(learnt)
    before[:, 1:] = learnt[:, :-1]
    number = (learnt & ~before)[learnt].cumsum(0) - 1
    wrong = torch.zeros(int(number[-1]) + 1, dtype=torch.long, device=hits.device)
    wrong.index_add_(0, number, (~hits).long())
    return [not count for count in wrong.tolist()]
