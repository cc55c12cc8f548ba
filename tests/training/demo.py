"""The demo model before it was taught anything, and a few of its images."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from examples.demo_model.model import MAX_POSITIONS
from examples.demo_model.pictures import Pictures, draw_many
from examples.demo_model.recipe import LessonPhase
from examples.demo_model.train import write_start
from llavakit.model.loader import load_reader
from llavakit.training.examples import Encoder

MIX = {"scene": 1, "page": 1, "several": 1, "interleaved": 1, "schema": 1, "plain": 1}
MIX |= {"copying": 2, "talk": 1}


@cache
def _folder() -> TemporaryDirectory[str]:
    return TemporaryDirectory(prefix="llavakit-untaught-")  # gone when the tests are


@cache
def untaught() -> Path:
    """Its directory."""
    folder = Path(_folder().name)
    write_start(folder)
    return folder


@cache
def encoder() -> Encoder:
    return Encoder(load_reader(untaught()), MAX_POSITIONS)


@cache
def store() -> dict[str, Pictures]:
    return {kind: draw_many(kind, 0, 4) for kind in ("scene", "page")}


def lesson_phase(**options: object) -> LessonPhase:
    """A short phase of all lessons."""
    given = {"name": "lessons", "steps": 3, "seed": 1, "mix": MIX, "tokens": 3000, **options}
    return LessonPhase(**given)  # type: ignore[arg-type]
