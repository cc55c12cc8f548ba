"""Fine-tunes the bundled model on a shape that it has never seen: the hexagon.

Draws images and questions, writes them as training records, trains a LoRA on a processor in a
few minutes, and asks the model before and after about images that it was not trained on: new
ones with hexagons, and ordinary ones, whose tasks it must not forget.

    python examples/finetune_demo.py --out hexagon
    llavakit ask image.png "What shape is it?" --model hexagon --model-base demo

Needs `pip install "llavakit[train]"`.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from demo_model.world.asked import Asked, caption
from demo_model.world.pages import draw_page, random_page
from demo_model.world.questions import ask
from demo_model.world.scenes import Scene, Shape, draw_scene, random_scene, through_codec
from PIL import Image, ImageDraw

import llavakit
from llavakit.training.config import TrainConfig
from llavakit.training.run import train

NEW = "hexagon"
MARGIN = 0.05
"""The largest share of right answers that old tasks may lose."""

OLD_TASKS = ("colour", "shape", "exists", "count all", "what is at", "caption")


@dataclass(frozen=True)
class Lesson:
    """An image, questions about it, and what they are about."""

    picture: Image.Image
    asked: tuple[Asked, ...]


def hexagon(shape: Shape, width: int, height: int) -> list[tuple[float, float]]:
    """Return the corners of a hexagon in pixels."""
    radius = shape.size * min(width, height) / 2
    angles = [shape.turn + math.pi * k / 3 for k in range(6)]
    x, y = shape.x * width, shape.y * height
    return [(x + radius * math.cos(a), y + radius * math.sin(a)) for a in angles]


def draw(scene: Scene) -> Image.Image:
    """Draw a scene, hexagons included, which the bundled world cannot draw."""
    known = tuple(shape for shape in scene.shapes if shape.kind != NEW)
    image = draw_scene(replace(scene, shapes=known, codec=""))
    large = image.resize((2 * scene.width, 2 * scene.height))
    pen = ImageDraw.Draw(large)
    for shape in scene.shapes:
        if shape.kind == NEW:
            pen.polygon(hexagon(shape, *large.size), fill=shape.tone)
    small = large.resize(image.size, Image.Resampling.BOX)
    return through_codec(small, scene.codec, scene.quality)


def with_hexagon(rng: random.Random) -> Scene:
    """Return a scene in which one of the shapes is a hexagon."""
    scene = random_scene(rng, rng.choice((1, 1, 2, 3, 4)))
    at = rng.randrange(len(scene.shapes))
    new = replace(scene.shapes[at], kind=NEW, turn=rng.uniform(-0.2, 0.2))
    return replace(scene, shapes=(*scene.shapes[:at], new, *scene.shapes[at + 1 :]))


def about_hexagon(scene: Scene, rng: random.Random) -> dict[str, Asked]:
    """Return questions about the new shape, in the words of the old ones."""
    shape = next(one for one in scene.shapes if one.kind == NEW)
    alone = sum(one.colour == shape.colour for one in scene.shapes) == 1
    asked = {
        "colour": Asked("new: colour", f"What color is the {NEW}?", shape.colour),
        "exists": Asked("new: exists", f"Is there a {NEW}?", "yes"),
        "caption": Asked("new: caption", "Describe the image.", caption(scene)),
    }
    if alone:
        ways = (
            f"What shape is the {shape.colour} object?",
            f"Which shape is {shape.colour}?",
            f"What is the shape of the {shape.colour} object?",
        )
        asked["shape"] = Asked("new: shape", rng.choice(ways), NEW)
    if len(scene.shapes) == 1:
        asked["shape"] = Asked(
            "new: shape", rng.choice(("What shape is it?", "What shape is shown?")), NEW
        )
    return asked


def new_lesson(rng: random.Random) -> Lesson:
    """Return an image with a hexagon."""
    scene = with_hexagon(rng)
    asked = about_hexagon(scene, rng)
    # The first answer reveals the hexagon: only the first question needs the image.
    first = rng.choice([task for task in ("exists", "shape", "caption") if task in asked])
    return Lesson(draw(scene), (asked.pop(first), *asked.values()))


def old_lesson(rng: random.Random, tasks: Sequence[str] = ()) -> Lesson:
    """Return an image of the bundled world; half of the scenes are asked for a hexagon in vain."""
    if not tasks and rng.random() < 0.2:
        page = random_page(rng)
        return Lesson(draw_page(page), tuple(ask(page, rng) for _ in range(3)))
    scene = random_scene(rng)
    asked: list[Asked] = []
    for task in tasks or [None] * 3:  # type: ignore[list-item]
        try:
            asked.append(ask(scene, rng, task))
        except ValueError:  # this task has no sure answer here
            continue
    if not tasks and rng.random() < 0.5:
        asked.insert(0, Asked("new: absent", f"Is there a {NEW}?", "no"))
    return Lesson(draw_scene(scene), tuple(asked))


def write_records(folder: Path, lessons: Sequence[Lesson]) -> Path:
    """Return lessons in the original LLaVA's format, one conversation for each image."""
    records = []
    for number, lesson in enumerate(lessons):
        name = f"{number}.png"
        lesson.picture.save(folder / name)
        said = []
        for turn, asked in enumerate(lesson.asked):
            question = asked.question if turn else f"<image>\n{asked.question}"
            said += [{"from": "human", "value": question}, {"from": "gpt", "value": asked.answer}]
        records.append({"id": number, "image": name, "conversations": said})
    file = folder / "train.json"
    file.write_text(json.dumps(records))
    return file


def held_out(count: int) -> list[tuple[Image.Image, Asked]]:
    """Return questions about images that are in no lesson, each asked alone."""
    rng = random.Random("held out")
    found: list[tuple[Image.Image, Asked]] = []

    def fill(tasks: Sequence[str], make: Callable[[], Lesson]) -> None:
        left = dict.fromkeys(tasks, count)
        while any(left.values()):
            lesson = make()
            for asked in lesson.asked:
                if left.get(asked.task, 0):
                    left[asked.task] -= 1
                    found.append((lesson.picture, asked))

    fill(("new: shape", "new: exists", "new: colour", "new: caption"), lambda: new_lesson(rng))
    fill(("new: absent",), lambda: old_lesson(rng))
    fill(OLD_TASKS, lambda: old_lesson(rng, OLD_TASKS))
    return found


def score(
    model: str, base: str | None, cases: Sequence[tuple[Image.Image, Asked]]
) -> dict[str, float]:
    """Return the share of right answers of each task; questions are answered in batches."""
    backend = llavakit.load(model, model_base=base)
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda case: backend.ask(case[0], case[1].question), cases))
    backend.close()
    right: dict[str, list[bool]] = {}
    for (_, asked), answer in zip(cases, answers, strict=True):
        right.setdefault(asked.task, []).append(answer.strip().rstrip(".") == asked.answer)
    return {task: sum(found) / len(found) for task, found in right.items()}


def main() -> None:
    """Score before the training, train, and score after it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="where the adapter is kept")
    parser.add_argument("--images", type=int, default=4000, help="to learn from")
    parser.add_argument("--held-out", type=int, default=60, help="questions of each task")
    args = parser.parse_args()
    started = time.monotonic()
    cases = held_out(args.held_out)
    before = score("demo", None, cases)
    rng = random.Random("lessons")
    lessons = [
        new_lesson(rng) if rng.random() < 0.4 else old_lesson(rng) for _ in range(args.images)
    ]
    with tempfile.TemporaryDirectory() as folder:
        out = args.out or Path(folder) / "hexagon"
        settings = {
            "model": "demo",
            "data": str(write_records(Path(folder), lessons)),
            "out": str(out),
            "device": "cpu",
            "batch_size": 16,
            "lora_rank": 32,
            "lora_alpha": 64,
            "lora_dropout": 0.0,
            "learning_rate": 2e-3,
            "projector_learning_rate": 1e-3,
            "gradient_checkpointing": False,
            "save_steps": 100_000,
        }
        trained = train(TrainConfig.of("lora", settings), print)
        after = score(str(out), "demo", cases)
    print(f"\n{trained.steps} steps, loss {trained.losses[0]:.2f} to {trained.losses[-1]:.2f}.")
    print(f"\n{'held-out questions':<20} before   after")
    for task in sorted(before, key=lambda one: (one in OLD_TASKS, one)):
        print(f"{task:<20} {before[task]:6.0%}  {after[task]:6.0%}")
    old = [sum(found[task] for task in OLD_TASKS) / len(OLD_TASKS) for found in (before, after)]
    print(f"{'old tasks together':<20} {old[0]:6.1%}  {old[1]:6.1%}")
    print(f"\nAll of it took {time.monotonic() - started:.0f} s.")
    if old[1] < old[0] - MARGIN:
        raise SystemExit(f"The old tasks lost more than {MARGIN:.0%}.")


if __name__ == "__main__":
    main()
