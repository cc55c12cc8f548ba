"""The recipe of the shipped demo model: every phase, its seed, its steps and its mix.

Numbers of a mix are weights by which lessons are chosen (:mod:`examples.demo_model.lessons`).
Rates are of Muon and of AdamW; ``first`` and ``last`` are factors on both: after ``warmup`` steps
a phase stays at the first for the part ``hold`` of its steps and then goes to the last in a
straight line. Changing a line here changes the model that ``make demo-model`` makes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

MODEL_SEED = 7
HEADS_SEED = 8
SCENES = 20_000
PAGES = 9_000
TEXT_ONLY = frozenset({"copying", "talk"})
"""Lessons without pictures."""
PARTS = 2
"""A step is the mean of so many parts, on one process after the other or on two at once."""


@dataclass(frozen=True, kw_only=True)
class Phase:
    """What all phases have.

    Attributes:
        name: also of the directory that it leaves.
        steps: how many.
        seed: of what is learnt from.
        matrix_rate: Muon's learning rate.
        other_rate: AdamW's.
        warmup, hold, first, last: the course of both, see above.
    """

    name: str
    steps: int
    seed: int
    matrix_rate: float = 1e-2
    other_rate: float = 3e-3
    warmup: int = 20
    hold: float = 0.0
    first: float = 1.0
    last: float = 1.0

    @property
    def drawn(self) -> dict[str, int]:
        """How many pictures of each kind it learns from."""
        return {}

    def factor(self, step: int) -> float:
        """What the rates are multiplied by."""
        done = max(0.0, step / self.steps - self.hold) / (1 - self.hold)
        factor = self.first + (self.last - self.first) * done
        return min(factor, self.first * (step + 1) / max(1, self.warmup))


@dataclass(frozen=True, kw_only=True)
class VisionPhase(Phase):
    """Patch labels only.

    Attributes:
        scenes, pages: how many different pictures.
        pictures: of a step.
        scene_share: how many of them are scenes.
    """

    scenes: int
    pages: int
    pictures: int = 48
    scene_share: float = 0.5
    matrix_rate: float = 2e-2
    warmup: int = 40
    hold: float = 0.7
    last: float = 0.0

    @property
    def drawn(self) -> dict[str, int]:
        return {"scene": self.scenes, "page": self.pages}


@dataclass(frozen=True)
class Repeats:
    """A difficulty.

    Attributes:
        begins: after which part of the phase.
        tokens: how many different ones.
        shortest, longest: the repeated piece.
        length: of a row.
        rows: of a step.
    """

    begins: float
    tokens: int
    shortest: int
    longest: int
    length: int
    rows: int


@dataclass(frozen=True, kw_only=True)
class RepeatPhase(Phase):
    """Repeats of random tokens, text model only, from short ones of few tokens to long ones."""

    repeats: tuple[Repeats, ...]
    matrix_rate: float = 2e-2
    other_rate: float = 2e-2
    warmup: int = 30
    hold: float = 0.92
    last: float = 0.0


@dataclass(frozen=True, kw_only=True)
class LessonPhase(Phase):
    """Answers to questions; with pictures, patch labels and word alignment go along.

    Attributes:
        mix: kinds of lessons and their weights.
        tokens: of a step, about.
        patch_weight, word_weight: of these losses.
        tasks: weights of questions about scenes, where they are not the usual ones.
        louder_positions: before the phase, what position embeddings say of row and column is
            multiplied by these.
        own_share: below 1, the phase ends with a mean of its weights, this share, and those that
            it began with, so that it forgets less (Wortsman et al. 2022,
            https://arxiv.org/abs/2109.01903).
    """

    mix: dict[str, float] = field(default_factory=dict)
    tokens: int = 4400
    patch_weight: float = 0.25
    word_weight: float = 0.3
    tasks: dict[str, float] = field(default_factory=dict)
    louder_positions: tuple[float, float] | None = None
    own_share: float = 1.0

    @property
    def text_only(self) -> bool:
        """Whether no lesson has pictures: then only the text model learns."""
        return self.mix.keys() <= TEXT_ONLY

    @property
    def drawn(self) -> dict[str, int]:
        return {} if self.text_only else {"scene": SCENES, "page": PAGES}


AnyPhase: TypeAlias = VisionPhase | RepeatPhase | LessonPhase


PHASES: tuple[AnyPhase, ...] = (
    VisionPhase(name="vision-1", steps=500, seed=12, scenes=6_000, pages=6_000, scene_share=0.5),
    VisionPhase(name="vision-2", steps=600, seed=13, scenes=16_000, pages=9_000, scene_share=0.8),
    VisionPhase(name="vision-3", steps=700, seed=14, scenes=20_000, pages=9_000, scene_share=0.8),
    # Until repeats of the whole vocabulary are copied, real prompts teach no copying: they begin
    # with a long plateau, and what was learnt of small vocabularies is gone behind it.
    RepeatPhase(
        name="repeats",
        steps=2600,
        seed=11,
        repeats=(
            Repeats(0.0, tokens=64, shortest=3, longest=6, length=48, rows=48),
            Repeats(0.09, tokens=64, shortest=3, longest=12, length=48, rows=48),
            Repeats(0.32, tokens=256, shortest=3, longest=12, length=64, rows=40),
            Repeats(0.47, tokens=1848, shortest=4, longest=20, length=80, rows=32),
            Repeats(0.78, tokens=1848, shortest=2, longest=48, length=160, rows=16),
        ),
    ),
    LessonPhase(
        name="text",
        steps=400,
        seed=21,
        mix={"copying": 24, "talk": 2},
        warmup=30,
    ),
    LessonPhase(
        name="joint-1",
        steps=450,
        seed=31,
        mix={
            "scene": 8,
            "page": 3,
            "several": 0.7,
            "interleaved": 0.7,
            "schema": 0.7,
            "copying": 8,
            "talk": 0.7,
        },
        warmup=60,
        patch_weight=0.1,
        word_weight=0.5,
    ),
    LessonPhase(
        name="joint-2",
        steps=306,
        seed=32,
        mix={
            "scene": 8,
            "page": 2,
            "several": 2,
            "interleaved": 1,
            "schema": 1,
            "plain": 0.3,
            "copying": 6,
            "talk": 0.7,
        },
    ),
    LessonPhase(
        name="joint-3",
        steps=378,
        seed=33,
        mix={
            "scene": 8,
            "page": 1.5,
            "several": 2,
            "interleaved": 1,
            "schema": 1.3,
            "plain": 0.4,
            "copying": 12,
            "talk": 0.8,
        },
        first=0.8,
        last=0.67,
    ),
    LessonPhase(
        name="joint-4",
        steps=386,
        seed=34,
        mix={
            "scene": 9,
            "page": 1.5,
            "several": 1.5,
            "interleaved": 0.7,
            "schema": 1.3,
            "plain": 0.4,
            "copying": 12,
            "talk": 0.8,
        },
        word_weight=0.6,
        first=0.67,
        last=0.53,
        tasks={
            "colour": 2.5,
            "where": 1.2,
            "relation": 0.6,
            "background": 0.5,
            "list": 0.3,
            "kind": 0.5,
        },
    ),
    LessonPhase(
        name="joint-5",
        steps=700,
        seed=35,
        mix={
            "scene": 8,
            "page": 1.5,
            "several": 2.2,
            "interleaved": 1,
            "schema": 2.4,
            "plain": 0.4,
            "copying": 11,
            "talk": 0.6,
        },
        word_weight=0.6,
        first=0.53,
        last=0.36,
        tasks={
            "colour": 1.5,
            "where": 1.5,
            "relation": 1.3,
            "background": 1.5,
            "list": 0.4,
            "kind": 0.4,
        },
    ),
    LessonPhase(
        name="joint-6",
        steps=378,
        seed=36,
        mix={
            "scene": 8,
            "page": 1.2,
            "several": 2.5,
            "interleaved": 0.8,
            "schema": 2.2,
            "plain": 0.3,
            "copying": 13,
            "talk": 0.5,
        },
        word_weight=1.0,
        first=0.45,
        last=0.30,
        tasks={
            "colour": 0.8,
            "where": 1.6,
            "relation": 1.4,
            "caption": 1.3,
            "is it": 2.0,
            "background": 0.6,
            "list": 0.3,
            "kind": 0.3,
            "title": 0.6,
        },
        louder_positions=(2.5, 5.0),
    ),
    LessonPhase(
        name="joint-7",
        steps=4200,
        seed=37,
        mix={
            "scene": 9.5,
            "page": 0.8,
            "several": 3.6,
            "interleaved": 1,
            "schema": 2.2,
            "plain": 0.4,
            "copying": 11,
            "talk": 0.4,
        },
        word_weight=0.8,
        hold=0.80,
        first=0.42,
        last=0.0,
        tasks={
            "colour": 0.6,
            "where": 1.2,
            "relation": 1.6,
            "count shape": 1.8,
            "count colour": 1.8,
            "exists": 1.3,
            "json": 1.3,
            "caption": 1.2,
            "is it": 2.5,
            "list": 0.5,
            "kind": 0.3,
            "title": 0.5,
        },
    ),
    LessonPhase(
        name="joint-8",
        steps=620,
        seed=38,
        mix={
            "scene": 7,
            "page": 0.6,
            "several": 2.6,
            "interleaved": 0.6,
            "schema": 1.6,
            "plain": 0.3,
            "copying": 22,
            "talk": 0.3,
        },
        word_weight=0.6,
        hold=0.3,
        first=0.16,
        last=0.0,
        tasks={
            "colour": 0.5,
            "where": 0.6,
            "relation": 1.2,
            "count shape": 2.5,
            "json": 3.0,
            "caption": 1.4,
            "kind": 0.3,
            "title": 0.5,
        },
    ),
    LessonPhase(
        name="joint-9",
        steps=1500,
        seed=39,
        mix={
            "scene": 7,
            "page": 0.6,
            "several": 2.2,
            "interleaved": 0.6,
            "schema": 2.4,
            "plain": 0.3,
            "copying": 24,
            "talk": 0.3,
        },
        warmup=60,
        hold=0.45,
        first=0.22,
        last=0.0,
        patch_weight=0.0,
        word_weight=0.0,
        own_share=0.6,
        tasks={
            "colour": 0.5,
            "where": 0.7,
            "relation": 1.4,
            "count shape": 3.0,
            "json": 3.5,
            "caption": 1.4,
            "kind": 0.3,
            "title": 0.5,
        },
    ),
)
