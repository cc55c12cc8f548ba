"""Questions about one picture, with the answers that the world knows.

Short questions have short answers without a full stop. The wordings are in
:mod:`examples.demo_model.world.wordings`; which task is asked how often stands in the tables here.
"""

from __future__ import annotations

import random

from .asked import Asked
from .page_questions import ASK_PAGE
from .pages import Page
from .scene_questions import ASK_SCENE
from .scenes import Scene

SCENE_TASKS: tuple[tuple[str, float], ...] = (
    ("colour", 1.6),
    ("shape", 1.3),
    ("exists", 1.4),
    ("count all", 1.0),
    ("count colour", 0.9),
    ("count shape", 1.0),
    ("where", 1.5),
    ("relation", 1.8),
    ("caption", 1.7),
    ("json", 0.7),
    ("what is at", 0.8),
    ("background", 0.4),
    ("kind", 0.25),
    ("absent", 0.5),
    ("list", 0.4),
)
PAGE_TASKS: tuple[tuple[str, float], ...] = (
    ("title", 1.0),
    ("number", 1.3),
    ("total", 1.3),
    ("name", 0.7),
    ("page number", 0.5),
    ("read all", 1.2),
    ("page json", 1.2),
    ("page caption", 0.4),
    ("is it", 0.5),
    ("kind", 0.25),
    ("page absent", 0.3),
)


def ask(
    picture: Scene | Page,
    rng: random.Random,
    task: str | None = None,
    more: dict[str, float] | None = None,
) -> Asked:
    """Return a random question about a picture (of the given task, where it can be asked).

    ``more`` multiplies the weight of the tasks that it names. Raises ``ValueError`` where the
    task cannot be asked about this picture.
    """
    tasks = SCENE_TASKS if isinstance(picture, Scene) else PAGE_TASKS
    if more:
        tasks = tuple((name, weight * more.get(name, 1.0)) for name, weight in tasks)
    for _ in range(40):
        chosen = task or rng.choices([t for t, _ in tasks], [w for _, w in tasks])[0]
        if isinstance(picture, Scene):
            asked = ASK_SCENE[chosen](picture, rng)
        else:
            asked = ASK_PAGE[chosen](picture, rng)
        if asked is not None:
            return asked
    raise ValueError(f"{task} cannot be asked about this picture")
