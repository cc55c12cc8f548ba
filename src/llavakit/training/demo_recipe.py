"""The recipe of the shipped demo model: every phase, its seed, its steps and its mix.

Numbers of a mix are weights by which trees are chosen (:mod:`llavakit.training.demo_data`). Rates
are of Muon and of AdamW; ``first`` and ``last`` are factors on both: a phase stays at the first for
the part ``hold`` of its steps and then goes to the last in a straight line. Changing a line here
changes the model that ``make demo-model`` makes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

MODEL_SEED = 7
HEADS_SEED = 8
SCENES = 20_000
PAGES = 9_000


@dataclass(frozen=True)
class VisionPhase:
    """Patch labels only."""

    name: str
    steps: int
    seed: int
    scenes: int
    pages: int
    scene_share: float
    rate: float = 2e-2


@dataclass(frozen=True)
class RepeatPhase:
    """Repeats of random tokens, text model only."""

    name: str
    steps: int
    seed: int
    rate: float = 2e-2


@dataclass(frozen=True)
class LessonPhase:
    """Answers to questions; with pictures, patch labels and word alignment go along."""

    name: str
    steps: int
    seed: int
    mix: dict[str, float] = field(default_factory=dict)
    tokens: int = 4400
    matrix_rate: float = 1e-2
    other_rate: float = 3e-3
    warmup: int = 0
    hold: float = 0.0
    first: float = 1.0
    last: float = 1.0
    patch_weight: float = 0.25
    word_weight: float = 0.3
    tasks: dict[str, float] = field(default_factory=dict)
    louder_positions: tuple[float, float] | None = None
    own_share: float = 1.0
    """Below 1, the phase ends with a mean of its weights, this share, and those that it began
    with, so that it forgets less (Wortsman et al. 2022, https://arxiv.org/abs/2109.01903)."""


VISION: tuple[VisionPhase, ...] = (
    VisionPhase("vision-1", 500, 12, scenes=6_000, pages=6_000, scene_share=0.5),
    VisionPhase("vision-2", 600, 13, scenes=16_000, pages=9_000, scene_share=0.8),
    VisionPhase("vision-3", 700, 14, scenes=20_000, pages=9_000, scene_share=0.8),
)
TEXT: tuple[RepeatPhase | LessonPhase, ...] = (
    RepeatPhase("repeats", 1200, 11),
    LessonPhase(
        "text",
        300,
        21,
        {"copying": 24, "talk": 2},
        matrix_rate=1.5e-2,
        warmup=30,
    ),
)
JOINT: tuple[LessonPhase, ...] = (
    LessonPhase(
        "joint-1",
        450,
        31,
        {
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
        "joint-2",
        306,
        32,
        {
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
        "joint-3",
        378,
        33,
        {
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
        "joint-4",
        386,
        34,
        {
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
        "joint-5",
        700,
        35,
        {
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
        "joint-6",
        378,
        36,
        {
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
        "joint-7",
        4200,
        37,
        {
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
        "joint-8",
        620,
        38,
        {
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
        "joint-9",
        1500,
        39,
        {
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
        own_share=0.3,
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
