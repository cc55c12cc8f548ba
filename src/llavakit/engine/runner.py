"""Runs a plan on the model: pictures, one forward pass, logits."""

from __future__ import annotations

import logging
from collections.abc import Sequence as Items
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from llavakit.engine.arena import KVArena
from llavakit.engine.attention import Row, attention_of
from llavakit.engine.decode import StaticDecode
from llavakit.engine.scheduler import Plan, Work
from llavakit.engine.sequence import ImageSpan, Sequence
from llavakit.engine.transfer import to_device
from llavakit.engine.vision import VisionEncoder
from llavakit.model.llava import Llava

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Outcome:
    """What a step gave.

    Attributes:
        logits: [N, vocab] in fp32, a row for each work that completes its sequence; may be
            overwritten by the next step.
        completed: those works, in the same order.
        failed: sequences that could not be computed, and why. Their keys and values are void.
    """

    logits: Tensor | None = None
    completed: list[Work] = field(default_factory=list)
    failed: dict[Sequence, Exception] = field(default_factory=dict)


class ModelRunner:
    """Owns the model's memory: the KV arena and the features of pictures.

    Args:
        model: the loaded model.
        arena: its keys and values.
        image_cache_bytes: budget of the feature cache.
        static: runs steps that only decode, if it can.

    Attributes:
        eager: how many passes were run eagerly.
        halved: how often a pass failed and was tried in halves; 0 unless something is wrong.
    """

    def __init__(
        self,
        model: Llava,
        arena: KVArena,
        image_cache_bytes: int,
        static: StaticDecode | None = None,
    ) -> None:
        self.model = model
        self.arena = arena
        self.static = static
        self.eager = 0
        self.halved = 0
        self.vision = VisionEncoder(model.encode_images, image_cache_bytes)

    def run(self, plan: Plan) -> Outcome:
        """Run one step. One bad sequence never harms another."""
        outcome = Outcome()
        features = self.vision.features([image for work in plan.work for image in _needed(work)])
        work = []
        for one in plan.work:
            error = next(
                (e for i in _needed(one) if isinstance(e := features[i.key], Exception)), None
            )
            if error is None:
                work.append(one)
            else:
                outcome.failed[one.sequence] = error
        good = {key: one for key, one in features.items() if isinstance(one, Tensor)}
        rows = self._forward(work, good, outcome)
        if rows:
            outcome.logits = rows[0] if len(rows) == 1 else torch.cat(rows)
        return outcome

    def _forward(
        self, work: Items[Work], features: dict[str, Tensor], outcome: Outcome
    ) -> list[Tensor]:
        """Logits of the works that complete; halves the batch when it fails, down to one."""
        if not work:
            return []
        try:
            logits = self._decoded(work)
            if logits is None:
                logits = self._computed(work, features)
        except Exception as error:
            if isinstance(error, torch.OutOfMemoryError):
                torch.cuda.empty_cache()
            if len(work) == 1:
                outcome.failed[work[0].sequence] = error
                return []
            self.halved += 1
            log.warning(
                "a step failed for %d sequences and is tried in halves", len(work), exc_info=True
            )
            middle = len(work) // 2
            return self._forward(work[:middle], features, outcome) + self._forward(
                work[middle:], features, outcome
            )
        outcome.completed += [one for one in work if one.completes]
        return [] if logits is None else [logits]

    def _decoded(self, work: Items[Work]) -> Tensor | None:
        """Logits of a step that only decodes, where it can run in static shapes."""
        if self.static is None or not all(_decodes(one) for one in work):
            return None
        tokens = [one.sequence.tokens[one.start] for one in work]
        return self.static([_row(one) for one in work], tokens)

    def _computed(self, work: Items[Work], features: dict[str, Tensor]) -> Tensor | None:
        """Logits of the works that complete, of any pass."""
        self.eager += 1
        hidden = self._hidden(work, features)
        ends = torch.tensor([one.count for one in work]).cumsum(0) - 1
        last = ends[torch.tensor([one.completes for one in work])]
        return self.model.logits(hidden[to_device(last, hidden.device)]) if len(last) else None

    def _hidden(self, work: Items[Work], features: dict[str, Tensor]) -> Tensor:
        device = self.model.device
        ids = [token for one in work for token in _tokens(one)]
        places = np.concatenate([np.arange(one.start, one.start + one.count) for one in work])
        embeddings = self.model.embed(to_device(torch.tensor(ids), device))
        position = 0
        for one in work:
            for image in _needed(one):
                _place(embeddings[position : position + one.count], one.start, image, features)
            position += one.count
        rows = [_row(one) for one in work]
        positions = to_device(torch.from_numpy(places), device)
        return self.model.decode(embeddings, positions, attention_of(self.arena, rows))


def _row(work: Work) -> Row:
    segment = work.sequence.segment
    assert segment is not None, "only running sequences have work"
    return Row(segment.prefix, segment.extent.start, work.start - segment.base, work.count)


def _decodes(work: Work) -> bool:
    """Whether it is one token of text, behind which another one is drawn."""
    return work.count == 1 and work.completes and not _needed(work)


def _tokens(work: Work) -> list[int]:
    return work.sequence.tokens[work.start : work.start + work.count]


def _needed(work: Work) -> list[ImageSpan]:
    """Pictures of which a part is computed in this step."""
    if not work.sequence.images or work.start >= work.sequence.prompt_length:
        return []
    end = work.start + work.count
    return [image for image in work.sequence.images if image.start < end and image.end > work.start]


def _place(embeddings: Tensor, start: int, image: ImageSpan, features: dict[str, Tensor]) -> None:
    """Put a picture's features where its tokens stand; ``embeddings[0]`` is token ``start``."""
    picture = features[image.key]
    assert len(picture) == image.count, "the layout counts what the vision tower gives"
    first = max(image.start, start)
    last = min(image.end, start + len(embeddings))
    embeddings[first - start : last - start] = picture[first - image.start : last - image.start]
