"""Write the demo model's card out of what was measured.

``python -m examples.demo_model.card --score score.json`` takes the score that
:mod:`examples.demo_model.evaluate` wrote and puts ``README.md`` beside the weights.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from llavakit.demo import checkpoint_path

from . import recipe as demo_recipe
from .evaluate import table
from .recipe import LessonPhase, VisionPhase

TARGETS: dict[str, float] = {
    **dict.fromkeys(
        (
            "scene: colour",
            "scene: shape",
            "scene: exists",
            "scene: json",
            "page: title",
            "page: number",
            "page: total",
            "page: read all",
            "page: page json",
        ),
        0.98,
    ),
    **dict.fromkeys(
        (
            "scene: count all",
            "scene: count colour",
            "scene: count shape",
            "text: tool_call",
            "text: fill_schema",
        ),
        0.95,
    ),
    **dict.fromkeys(
        (
            "dialogue",
            "several which",
            "several describe",
            "several colour",
            "several exists",
            "several shape",
            "text: stated_fact",
        ),
        0.9,
    ),
    **dict.fromkeys(("scene: where", "scene: relation", "scene: caption"), 0.85),
}
"""What the model was meant to reach; the card says where it did not."""


def card(score: dict[str, tuple[int, int]], size: int) -> str:
    """Return the card as Markdown."""
    missed = [
        f"{row} ({right / asked:.3f}, meant {TARGETS[row]:.2f})"
        for row, (right, asked) in score.items()
        if row in TARGETS and right / asked < TARGETS[row]
    ]
    phases = demo_recipe.PHASES
    vision = sum(one.steps for one in phases if isinstance(one, VisionPhase))
    joint = sum(one.steps for one in phases if isinstance(one, LessonPhase) and not one.text_only)
    text = sum(one.steps for one in phases) - vision - joint
    plainly = (
        f"Below what it was meant to reach: {'; '.join(missed)}."
        if missed
        else "It reaches what it was meant to reach."
    )
    return f"""---
license: apache-2.0
pipeline_tag: image-text-to-text
library_name: transformers
---
# llavakit demo

A real LLaVA in miniature ({size / 1e6:.1f} MB): a CLIP vision tower of 128 x 128 pixels, a
projector of two layers and a Llama of four. It loads with `AutoModelForImageTextToText` and
`AutoProcessor`, and answers questions about pictures of plain coloured shapes and about small
printed pages, calls tools and fills schemas.

**It is a demonstration.** It exists so that a quick start runs in seconds on any laptop, and so
that tests can check meaning. It does not know photographs, free layouts, other fonts, or the
world: it names what it was shown, and answers anything else wrongly and without hesitation.

## How it was made
From seed and code alone, on two CPU cores, by `make demo-model`
(`examples.demo_model.train`): no other weights and no downloaded data. The pictures are
drawn by `llavakit.demo`, the questions too. The tower first learns what is drawn in each patch
({vision} steps); the Llama first learns to repeat random tokens, then to copy names and values
from a prompt ({text} steps); then both are joined and learn to answer ({joint} steps). The
recipe is `examples/demo_model/recipe.py`. These weights were made while it was being found:
the loss that ties patches to words was sharpened between the joint phases. Running the recipe
gives a model of this kind, not the same bytes.

## What it can do, measured
Pictures and prompts that it was never trained on (seeds of their own), through its processor
and `generate`, greedy, by exact match of the whole answer. Rows that start with `text:` have no
picture. In dialogues every turn counts, with the model's own answers before it.

{table(score)}

{plainly}

## What it sees
The prompt is Vicuna's: `USER: <image>\\nWhat colour is the circle? ASSISTANT:`; answers end
with `</s>`. Pictures are padded to a square with the mean colour, as LLaVA-1.5 does, and become
64 tokens. Shapes: circle, square, triangle, rectangle, star, diamond, heart, cross. Colours:
red, orange, yellow, green, blue, purple, pink, brown, black, white, gray. Up to six shapes, and
up to three pictures in a prompt. Pages have one layout: a title, `No.`, `Total`, and perhaps
`Name` and `Page`.
"""


def main() -> None:
    """Write the card."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--score", type=Path, nargs="+", required=True, help="files to add up")
    parser.add_argument("--checkpoint", type=Path, default=checkpoint_path())
    args = parser.parse_args()
    score: dict[str, tuple[int, int]] = {}
    for path in args.score:
        for row, (right, asked) in json.loads(path.read_text()).items():
            before = score.get(row, (0, 0))
            score[row] = (before[0] + right, before[1] + asked)
    size = (args.checkpoint / "model.safetensors").stat().st_size
    (args.checkpoint / "README.md").write_text(card(score, size))


if __name__ == "__main__":
    main()
