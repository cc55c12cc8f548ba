"""Runs a plan on the model: images, one forward pass, logits."""

from __future__ import annotations

import functools
import itertools
import logging
from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from llavakit.engine.arena import KVArena
from llavakit.engine.attention import Row, attention_of
from llavakit.engine.decode import StaticDecode
from llavakit.engine.mixed import StaticMixed
from llavakit.engine.pieces import Kernel
from llavakit.engine.scheduler import StepPlan, Work
from llavakit.engine.sequence import ImageSpan, Sequence
from llavakit.engine.transfer import to_device
from llavakit.engine.vision import VisionEncoder
from llavakit.model.layer_decoder import Decoder
from llavakit.model.llava import Llava
from llavakit.model.retrieval import RetrievalModel

T = TypeVar("T")

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Outcome:
    """What a step gave.

    Attributes:
        logits: [N, vocab] in fp32, a row for each work that completes its sequence; may be
            overwritten by the next step.
        completed: those works, in the same order.
        embedded: works of embeddings, and the vectors of their tokens, [N, dimensions].
        failed: sequences that could not be computed, and why. Their keys and values are void.
    """

    logits: Tensor | None = None
    completed: list[Work] = field(default_factory=list)
    embedded: list[tuple[Work, Tensor]] = field(default_factory=list)
    failed: dict[Sequence, Exception] = field(default_factory=dict)


class ModelRunner:
    """Owns the model's memory: the KV arena and the features of images.

    Args:
        model: the loaded model.
        arena: its keys and values.
        image_cache_bytes: budget of the feature cache.
        static: runs steps that only decode, if it can.
        mixed: runs short steps that prefill, if it can.
        kernel: attends in all others; None leaves it to the processor's.

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
        kernel: Kernel | None = None,
        mixed: StaticMixed | None = None,
    ) -> None:
        self.model = model
        self.arena = arena
        self.static = static
        self.mixed = mixed
        self._kernel = kernel
        self.eager = 0
        self.halved = 0
        self.vision = VisionEncoder(model.encode_images, image_cache_bytes)

    def run(self, plan: StepPlan, sampled: Tensor | None = None) -> Outcome:
        """Launch one step. One bad sequence never harms another.

        Args:
            plan: the step.
            sampled: [N] int64 on the device, what the step before sampled; see ``Work.source``.
        """
        outcome = Outcome()
        work = plan.work
        needed = [image for one in work if one.sequence.images for image in _needed(one)]
        features: dict[str, Tensor] = {}
        if needed:
            features, work = self._seen(needed, work, outcome)
        answers = [one for one in work if one.sequence.embedding is None]
        rows = self._forward(answers, features, sampled, outcome)
        if len(answers) < len(work):
            others = [one for one in work if one.sequence.embedding is not None]
            self._embed(others, features, outcome)
        if rows:
            outcome.logits = rows[0] if len(rows) == 1 else torch.cat(rows)
        return outcome

    def _seen(
        self, needed: Items[ImageSpan], work: Items[Work], outcome: Outcome
    ) -> tuple[dict[str, Tensor], list[Work]]:
        """Features of images by their key, and the works that lack none."""
        features = self.vision.features(needed)
        good = []
        for one in work:
            error = next(
                (e for i in _needed(one) if isinstance(e := features[i.key], Exception)), None
            )
            if error is None:
                good.append(one)
            else:
                outcome.failed[one.sequence] = error
        return {key: one for key, one in features.items() if isinstance(one, Tensor)}, good

    def _forward(
        self,
        work: Items[Work],
        features: dict[str, Tensor],
        sampled: Tensor | None,
        outcome: Outcome,
    ) -> list[Tensor]:
        """Logits of the works that complete."""
        passes = self._in_halves(work, outcome, lambda some: self._logits(some, features, sampled))
        outcome.completed += [one for some, _ in passes for one in some if one.completes]
        return [logits for _, logits in passes if logits is not None]

    def _embed(self, work: Items[Work], features: dict[str, Tensor], outcome: Outcome) -> None:
        """Vectors of works of embeddings, a forward pass for each adapter."""
        adapters = dict.fromkeys(one.sequence.embedding.model for one in work)
        for model in adapters:
            own = [one for one in work if one.sequence.embedding.model is model]
            compute = functools.partial(self._vectors, model=model, features=features)
            passes = self._in_halves(own, outcome, compute)
            outcome.embedded += [pair for _, pairs in passes for pair in pairs]

    def _vectors(
        self, work: Items[Work], model: RetrievalModel, features: dict[str, Tensor]
    ) -> list[tuple[Work, Tensor]]:
        self.eager += 1
        hidden = self._hidden(work, features, None, model.decode)
        places = itertools.accumulate((one.count for one in work), initial=0)
        spans = [one.sequence.embedding.wanted(one) for one in work]
        chosen = [hidden[p + s.start : p + s.stop] for p, s in zip(places, spans, strict=False)]
        vectors = model.project(torch.cat(chosen))
        parts = torch.split(vectors, [len(one) for one in chosen])
        return list(zip(work, parts, strict=True))

    def _in_halves(
        self, work: Items[Work], outcome: Outcome, compute: Callable[[Items[Work]], T]
    ) -> list[tuple[Items[Work], T]]:
        """What a pass gives; it is tried in halves when it fails, down to one sequence."""
        if not work:
            return []
        try:
            return [(work, compute(work))]
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
        halves = (work[:middle], work[middle:])
        return [one for half in halves for one in self._in_halves(half, outcome, compute)]

    def _logits(
        self, work: Items[Work], features: dict[str, Tensor], sampled: Tensor | None
    ) -> Tensor | None:
        """Logits of the works that complete, in the fastest way that can run them."""
        if self.static is not None and all(_decodes(one) for one in work):
            found = self._decoded(work, sampled)
        elif self.mixed is not None:
            embeddings = functools.partial(self._embedded, work, features, sampled)
            ends = _ends(work)
            found = self.mixed([_row(one) for one in work], embeddings, ends)
            if found is not None and not ends:
                return None
        else:
            found = None
        return self._computed(work, features, sampled) if found is None else found

    def _decoded(self, work: Items[Work], sampled: Tensor | None) -> Tensor | None:
        """Logits of a step that only decodes, where it can run in static shapes."""
        assert self.static is not None
        rows = [_row(one) for one in work]
        sources = [one.source for one in work]
        if sampled is None or max(sources) < 0:
            return self.static(rows, [one.sequence.tokens[one.start] for one in work])
        tokens = [one.sequence.tokens[one.start] if one.source < 0 else 0 for one in work]
        return self.static(rows, tokens, sources, sampled)

    def _computed(
        self, work: Items[Work], features: dict[str, Tensor], sampled: Tensor | None
    ) -> Tensor | None:
        """Logits of the works that complete, of any pass."""
        self.eager += 1
        hidden = self._hidden(work, features, sampled)
        if len(hidden) > len(work) or not all(one.completes for one in work):
            ends = _ends(work)
            if not ends:
                return None
            hidden = hidden[to_device(torch.tensor(ends), hidden.device)]
        return self.model.logits(hidden)

    def _embedded(
        self, work: Items[Work], features: dict[str, Tensor], sampled: Tensor | None
    ) -> Tensor:
        """Embeddings of a pass, [T, hidden], with the features of its images in their places."""
        embeddings = self.model.embed(_ids(work, sampled, self.model.device))
        position = 0
        for one in work:
            for image in _needed(one):
                _place(embeddings[position : position + one.count], one.start, image, features)
            position += one.count
        return embeddings

    def _hidden(
        self,
        work: Items[Work],
        features: dict[str, Tensor],
        sampled: Tensor | None,
        decode: Decoder | None = None,
    ) -> Tensor:
        embeddings = self._embedded(work, features, sampled)
        places = [place for one in work for place in range(one.start, one.start + one.count)]
        rows = [_row(one) for one in work]
        positions = to_device(torch.tensor(places), self.model.device)
        attend = attention_of(self.arena, rows, self._kernel)
        return (decode or self.model.decode)(embeddings, positions, attend)


def _ends(work: Items[Work]) -> list[int]:
    """Places in a pass of the last tokens of the works that complete."""
    ends = itertools.accumulate(one.count for one in work)
    return [end - 1 for end, one in zip(ends, work, strict=True) if one.completes]


def _ids(work: Items[Work], sampled: Tensor | None, device: torch.device) -> Tensor:
    """Token ids of a pass, [T]; those that the host does not know yet are ``sampled``."""
    sources = [one.source for one in work]
    if sampled is not None and sources == list(range(len(sampled))):
        return sampled  # the same sequences go on, as in most steps
    tokens: list[int] = []
    unknown: list[tuple[int, int]] = []
    for one in work:
        if one.source < 0:
            tokens += one.sequence.tokens[one.start : one.start + one.count]
        else:
            unknown.append((len(tokens), one.source))
            tokens.append(0)
    ids = to_device(torch.tensor(tokens), device)
    if unknown:
        assert sampled is not None, "something is computed ahead of nothing"
        places, found = to_device(torch.tensor(unknown).T.contiguous(), device)
        ids[places] = sampled[found]
    return ids


def _row(work: Work) -> Row:
    segment = work.sequence.segment
    assert segment is not None, "only running sequences have work"
    return Row(work.sequence.prefix, segment.extent.start, work.start - segment.base, work.count)


def _decodes(work: Work) -> bool:
    """Whether it is one token of text, behind which another one is sampled."""
    return work.count == 1 and work.completes and not _needed(work)


def _needed(work: Work) -> list[ImageSpan]:
    """Images of which a part is computed in this step."""
    if not work.sequence.images or work.start >= work.sequence.prompt_length:
        return []
    end = work.start + work.count
    return [image for image in work.sequence.images if image.start < end and image.end > work.start]


def _place(embeddings: Tensor, start: int, image: ImageSpan, features: dict[str, Tensor]) -> None:
    """Put an image's features where its tokens stand; ``embeddings[0]`` is token ``start``."""
    picture = features[image.key]
    assert len(picture) == image.count, "the layout counts what the vision tower gives"
    first = max(image.start, start)
    last = min(image.end, start + len(embeddings))
    embeddings[first - start : last - start] = picture[first - image.start : last - image.start]
