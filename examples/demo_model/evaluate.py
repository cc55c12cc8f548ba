"""Measure a demo checkpoint on pictures and prompts that it was never trained on.

``python -m examples.demo_model.evaluate`` prints a table of exact matches, task by task. Everything
goes the way of a user: the checkpoint's own processor and template, ``generate``, greedy.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from llavakit.demo import checkpoint_path

from .pictures import HELD_OUT, picture
from .world import copying, smalltalk
from .world.dialogue import IMAGE, Dialogue, random_system
from .world.pages import draw_page
from .world.questions import PAGE_TASKS, SCENE_TASKS, ask
from .world.scenes import Scene, draw_scene
from .world.several import Picture, ask_several, interleaved, plain_with_tools, schema_about


@dataclass(frozen=True)
class Case:
    """A dialogue, its pictures, and the row of the table that it belongs to."""

    row: str
    dialogue: Dialogue
    pictures: tuple[Picture, ...] = ()


def image_of(shown: Picture) -> Image.Image:
    """Draw a picture of either world."""
    return draw_scene(shown) if isinstance(shown, Scene) else draw_page(shown)


class Model:
    """A checkpoint with its processor; answers dialogues in batches, greedily."""

    def __init__(self, folder: Path) -> None:
        self.processor = AutoProcessor.from_pretrained(folder)
        self.model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()

    @torch.no_grad()
    def answer(
        self, prompts: list[str], images: list[list[Image.Image]], limit: int = 160
    ) -> list[str]:
        """Return the answers to prompts of nearly one length."""
        flat = [image for some in images for image in some]
        inputs = self.processor(
            text=prompts, images=flat or None, return_tensors="pt", padding=True
        )
        out = self.model.generate(**inputs, max_new_tokens=limit, do_sample=False)
        new = out[:, inputs["input_ids"].shape[1] :]
        texts: list[str] = self.processor.batch_decode(new, skip_special_tokens=True)
        return [text[1:] if text.startswith(" ") else text for text in texts]


def with_pictures(
    task: str, shown: list[Picture], question: str, answer: str, rng: random.Random
) -> Case:
    """Return a case of one question after its pictures."""
    turn = (f"{IMAGE}\n" * len(shown) + question, answer)
    return Case(task, Dialogue(task, (turn,), random_system(rng)), tuple(shown))


def held_out_cases(count: int, seed: int = 99) -> Iterable[Case]:
    """Yield ``count`` cases for every row of the table."""
    rng = random.Random(f"held-out-{seed}")
    fresh = iter(range(HELD_OUT + seed * 1_000_000, HELD_OUT + (seed + 1) * 1_000_000))
    for kind, tasks in (("scene", SCENE_TASKS), ("page", PAGE_TASKS)):
        for task, _ in tasks:
            made = 0
            while made < count:
                shown = picture(kind, next(fresh))
                try:
                    asked = ask(shown, rng, task)
                except ValueError:
                    continue
                yield with_pictures(f"{kind}: {task}", [shown], asked.question, asked.answer, rng)
                made += 1

    def some(number: int) -> list[Picture]:
        return [
            picture("scene" if rng.random() < 0.7 else "page", next(fresh)) for _ in range(number)
        ]

    made_rows: dict[str, int] = {}
    wanted = ("which", "describe", "count", "describe all", "colour", "exists", "shape")
    while any(made_rows.get(f"several {name}", 0) < count for name in wanted):
        many = some(rng.choice((2, 2, 3)))
        asked = ask_several(many, rng)
        name = asked.task if asked.task.removeprefix("several ") in wanted else "several other"
        made_rows[name] = made_rows.get(name, 0) + 1
        if made_rows[name] <= count:
            yield with_pictures(name, many, asked.question, asked.answer, rng)
    for _ in range(count):
        many = some(rng.choice((1, 1, 2)))
        yield Case("pictures between words", interleaved(many, rng), tuple(many))
        many = some(1)
        yield Case("picture schema", schema_about(many[0], rng), tuple(many))
        many = some(1)
        yield Case("picture, tools not needed", plain_with_tools(many[0], rng), tuple(many))
        many = some(1)
        turns = [(a.question, a.answer) for a in (ask(many[0], rng) for _ in range(3))]
        turns[0] = (f"{IMAGE}\n{turns[0][0]}", turns[0][1])
        yield Case("dialogue", Dialogue("dialogue", tuple(turns)), tuple(many))
    text_only: tuple[Callable[[random.Random], Dialogue], ...] = (
        copying.tool_call, copying.tool_result, copying.no_tool_needed, copying.fill_schema,
        copying.stated_fact, copying.repeat_after_me, smalltalk.random_talk,
    )  # fmt: skip
    for make in text_only:
        for _ in range(count):
            yield Case(f"text: {make.__name__}", make(rng))


def measure(
    model: Model, cases: list[Case], batch: int = 24, show: int = 0
) -> dict[str, tuple[int, int]]:
    """Return (right, asked) for every row; the turns of a dialogue follow own answers."""
    score: dict[str, tuple[int, int]] = {}
    live: list[tuple[Case, int, list[tuple[str, str]]]] = [(case, 0, []) for case in cases]
    shown = 0
    while live:
        live.sort(key=lambda item: (len(item[0].pictures), len(item[0].dialogue.prompt())))
        again = []
        for start in range(0, len(live), batch):
            part = live[start : start + batch]
            prompts, images = [], []
            for case, turn, history in part:
                question = case.dialogue.turns[turn][0]
                so_far = Dialogue("", (*history, (question, "")), case.dialogue.system)
                prompts.append(so_far.prompt())
                seen = prompts[-1].count(IMAGE)
                images.append([image_of(p) for p in case.pictures[:seen]])
            for (case, turn, history), text in zip(
                part, model.answer(prompts, images), strict=True
            ):
                question, answer = case.dialogue.turns[turn]
                right, asked = score.get(case.row, (0, 0))
                score[case.row] = (right + (text == answer), asked + 1)
                if text != answer and shown < show:
                    shown += 1
                    print(f"  {case.row}: {question[-90:]!r}: {answer!r}, not {text!r}", flush=True)
                if turn + 1 < len(case.dialogue.turns):
                    # A tool's result follows the right call only: it would answer nothing else.
                    kept = answer if case.row.startswith("text: tool") else text
                    again.append((case, turn + 1, [*history, (question, kept)]))
        live = again
    return dict(sorted(score.items()))


def table(score: dict[str, tuple[int, int]]) -> str:
    """Return the score as a Markdown table."""
    lines = ["| task | exact match | samples |", "|---|---|---|"]
    lines += [f"| {row} | {right / asked:.3f} | {asked} |" for row, (right, asked) in score.items()]
    return "\n".join(lines)


def main() -> None:
    """Print the table for a checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=checkpoint_path())
    parser.add_argument("--samples", type=int, default=100, help="cases for every row")
    parser.add_argument("--rows", default="", help="only rows that contain this")
    parser.add_argument("--show", type=int, default=0, help="print so many wrong answers")
    parser.add_argument("--seed", type=int, default=99)
    parser.add_argument("--json", type=Path, help="also write the score to this file")
    args = parser.parse_args()
    cases = [case for case in held_out_cases(args.samples, args.seed) if args.rows in case.row]
    score: dict[str, Any] = measure(Model(args.checkpoint), cases, show=args.show)
    if args.json:
        args.json.write_text(json.dumps(score, indent=1))
    print(table(score))


if __name__ == "__main__":
    main()
