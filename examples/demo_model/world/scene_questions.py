"""Questions about shapes. A function returns ``None`` where a picture gives no sure answer."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

from llavakit.prompts.tools import compact_json

from . import wordings
from .asked import (
    Asked,
    caption,
    hinted,
    kind_of_picture,
    plural,
    with_article,
    worded,
)
from .scenes import COLOURS, SHAPES, Scene, Shape

FAR = 0.2
"""Centres must be this far apart, in parts of the side, to be left of or above each other."""


def unique(scene: Scene) -> tuple[list[Shape], list[Shape], list[Shape]]:
    """Return the shapes alone of their kind, alone of their colour, alone of both together."""
    kinds = Counter(shape.kind for shape in scene.shapes)
    colours = Counter(shape.colour for shape in scene.shapes)
    names = Counter(shape.name for shape in scene.shapes)
    return (
        [shape for shape in scene.shapes if kinds[shape.kind] == 1],
        [shape for shape in scene.shapes if colours[shape.colour] == 1],
        [shape for shape in scene.shapes if names[shape.name] == 1],
    )


def mention(shape: Shape, scene: Scene, rng: random.Random) -> str:
    """Return words that mean this shape and no other: ``circle`` or ``red circle``."""
    alone = sum(other.kind == shape.kind for other in scene.shapes) == 1
    return shape.kind if alone and rng.random() < 0.4 else shape.name


def ask_colour(scene: Scene, rng: random.Random) -> Asked | None:
    """Ask the colour of the only shape of its kind."""
    by_kind, _, _ = unique(scene)
    if not by_kind:
        return None
    shape = rng.choice(by_kind)
    ways, name = wordings.COLOUR, shape.kind
    if len(scene.shapes) == 1 and rng.random() < 0.4:
        name = rng.choice(("shape", "object", "figure"))
        ways += ("What {c} is it?",) * 4
    return hinted(Asked("colour", worded(rng, ways, s=name), shape.colour), rng)


def ask_shape(scene: Scene, rng: random.Random) -> Asked | None:
    """Ask the shape of the only thing of its colour."""
    _, by_colour, _ = unique(scene)
    if not by_colour:
        return None
    shape = rng.choice(by_colour)
    only = len(scene.shapes) == 1 and rng.random() < 0.4
    ways = wordings.SHAPE_OF_THE_ONLY if only else wordings.SHAPE
    return hinted(Asked("shape", worded(rng, ways, k=shape.colour), shape.kind), rng)


def ask_exists(scene: Scene, rng: random.Random) -> Asked:
    """Ask whether something is there; half of the answers are yes where that is possible."""
    yes = rng.random() < 0.5 and bool(scene.shapes)
    kind = rng.random()
    if yes:
        shape = rng.choice(scene.shapes)
        name = shape.kind if kind < 0.4 else shape.name if kind < 0.8 else f"{shape.colour} shape"
    elif scene.shapes and kind < 0.5:
        # The hard case: both words are there, but not together.
        name = f"{rng.choice(scene.shapes).colour} {rng.choice(scene.shapes).kind}"
        if rng.random() < 0.5:
            name = f"{rng.choice(tuple(COLOURS))} {rng.choice(scene.shapes).kind}"
        yes = any(shape.name == name for shape in scene.shapes)
    elif kind < 0.75:
        name = rng.choice(SHAPES)
        yes = any(shape.kind == name for shape in scene.shapes)
    else:
        colour = rng.choice(tuple(COLOURS))
        name = f"{colour} shape"
        yes = any(shape.colour == colour for shape in scene.shapes)
    question = worded(rng, wordings.EXISTS, a=with_article(name))
    return hinted(Asked("exists", question, "yes" if yes else "no"), rng)


def ask_count_all(scene: Scene, rng: random.Random) -> Asked:
    """Ask how many shapes there are."""
    count = str(len(scene.shapes))
    return hinted(Asked("count all", worded(rng, wordings.COUNT_ALL), count), rng)


def ask_count_colour(scene: Scene, rng: random.Random) -> Asked:
    """Ask how many shapes have a colour."""
    there = scene.shapes and rng.random() < 0.8
    colour = rng.choice(scene.shapes).colour if there else rng.choice(tuple(COLOURS))
    count = str(sum(shape.colour == colour for shape in scene.shapes))
    question = worded(rng, wordings.COUNT_COLOUR, k=colour)
    return hinted(Asked("count colour", question, count), rng)


def ask_count_shape(scene: Scene, rng: random.Random) -> Asked:
    """Ask how many shapes of a kind there are."""
    there = scene.shapes and rng.random() < 0.8
    kind = rng.choice(scene.shapes).kind if there else rng.choice(SHAPES)
    count = str(sum(shape.kind == kind for shape in scene.shapes))
    question = worded(rng, wordings.COUNT_SHAPE, s=plural(kind))
    return hinted(Asked("count shape", question, count), rng)


def ask_where(scene: Scene, rng: random.Random) -> Asked | None:
    """Ask for one of the nine places."""
    _, _, by_name = unique(scene)
    placed = [shape for shape in by_name if shape.place]
    if not placed:
        return None
    shape = rng.choice(placed)
    question = worded(rng, wordings.WHERE, s=mention(shape, scene, rng))
    return hinted(Asked("where", question, str(shape.place)), rng)


def ask_what_is_at(scene: Scene, rng: random.Random) -> Asked | None:
    """Ask what stands at one of the nine places."""
    placed = [shape for shape in scene.shapes if shape.place]
    if not placed:
        return None
    shape = rng.choice(placed)
    if sum(other.place in (shape.place, None) for other in scene.shapes) > 1:
        return None
    spoken = {"left": "on the left", "right": "on the right", "center": "in the center"}
    at = spoken.get(str(shape.place), f"at the {shape.place}")
    question = worded(rng, wordings.WHAT_IS_AT, a=at)
    return Asked("what is at", question, with_article(shape.name))


def ask_relation(scene: Scene, rng: random.Random) -> Asked | None:
    """Ask how two shapes stand to each other, where it is clear."""
    _, _, by_name = unique(scene)
    if len(by_name) < 2:
        return None
    one, other = rng.sample(by_name, 2)
    dx, dy = other.x - one.x, other.y - one.y
    sideways, upright = abs(dx) > FAR, abs(dy) > FAR
    if not sideways and not upright:
        return None
    across = sideways if sideways != upright else rng.random() < 0.5
    said, told = mention(one, scene, rng), mention(other, scene, rng)
    answer = ("left" if dx > 0 else "right") if across else ("above" if dy > 0 else "below")
    if rng.random() < 0.5:
        claim = rng.choice(("left", "right")) if across else rng.choice(("above", "below"))
        phrases = {
            "left": rng.choice(("left of", "to the left of")),
            "right": rng.choice(("right of", "to the right of")),
        }
        phrase = phrases.get(claim, claim)
        question = worded(rng, ("Is the {a} {r} the {b}?",), a=said, b=told, r=phrase)
        return hinted(Asked("relation", question, "yes" if claim == answer else "no"), rng)
    ways = wordings.LEFT_OR_RIGHT if across else wordings.ABOVE_OR_BELOW
    question = worded(rng, ways, a=said, b=told)
    return hinted(Asked("relation", question, answer), rng)


def ask_caption(scene: Scene, rng: random.Random) -> Asked:
    """Ask for a description."""
    return Asked("caption", worded(rng, wordings.DESCRIBE), caption(scene))


def ask_list(scene: Scene, rng: random.Random) -> Asked | None:
    """Ask for the list of shapes."""
    if not scene.shapes:
        return None
    return Asked("list", worded(rng, wordings.LIST), caption(scene))


def ask_json(scene: Scene, rng: random.Random) -> Asked | None:
    """Ask for JSON: of a single shape, or the list of all."""
    if not scene.shapes:
        return None
    items = [{"color": shape.colour, "shape": shape.kind} for shape in scene.shapes]
    if len(items) == 1:
        return Asked("json", worded(rng, wordings.ONE_AS_JSON), compact_json(items[0]))
    by_kind, _, _ = unique(scene)
    if by_kind and rng.random() < 0.5:
        shape = rng.choice(by_kind)
        question = worded(rng, wordings.NAMED_AS_JSON, s=shape.kind)
        answer = compact_json({"color": shape.colour, "shape": shape.kind})
        return Asked("json", question, answer)
    if len(items) > 4:
        return None
    return Asked("json", worded(rng, wordings.ALL_AS_JSON), compact_json(items))


def ask_background(scene: Scene, rng: random.Random) -> Asked | None:
    """Ask the colour of the background, where people would agree."""
    if not scene.background:
        return None
    question = worded(rng, wordings.BACKGROUND)
    return hinted(Asked("background", question, scene.background), rng)


def ask_absent(scene: Scene, rng: random.Random) -> Asked | None:
    """Ask about a shape that is not there."""
    missing = [kind for kind in SHAPES if all(shape.kind != kind for shape in scene.shapes)]
    if not missing:
        return None
    kind = rng.choice(missing)
    return Asked("absent", worded(rng, wordings.ABSENT, s=kind), f"there is no {kind}")


ASK_SCENE: dict[str, Callable[[Scene, random.Random], Asked | None]] = {
    "colour": ask_colour,
    "shape": ask_shape,
    "exists": ask_exists,
    "count all": ask_count_all,
    "count colour": ask_count_colour,
    "count shape": ask_count_shape,
    "where": ask_where,
    "what is at": ask_what_is_at,
    "relation": ask_relation,
    "caption": ask_caption,
    "list": ask_list,
    "json": ask_json,
    "background": ask_background,
    "kind": kind_of_picture,
    "absent": ask_absent,
}
