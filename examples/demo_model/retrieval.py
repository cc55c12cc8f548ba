"""What the bundled model's retrieval adapter learns from: drawn pages, and questions that name one.

A question names a page by what stands on it, as people ask: by title and name, by a number, by a
total, in many wordings. ``python -m examples.demo_model.retrieval`` draws the data, trains the
adapter by ``llavakit train retrieve``, and writes it as the checkpoint carries it.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

from .world.pages import Page, draw_page, random_page

SEED = "retrieval"

_ASKED = {
    "total": (
        "What is the total on {page}?",
        "How much is {page}?",
        "What total is on {page}?",
        "total of {page}",
        "Which amount does {page} show?",
    ),
    "number": (
        "What is the number of {page}?",
        "Which number has {page}?",
        "number of {page}",
        "What is the number on {page}?",
    ),
    "name": ("Whose name is on {page}?", "Which name is on {page}?", "Who is {page} for?"),
    "page": ("Which page number has {page}?", "On which page is {page}?"),
    "title": ("What is {page}?", "What kind of page is {page}?", "Find {page}.", "{page}"),
}
_FIRST = {
    "title": ("the {title}", "the {title} page"),
    "name": ("the page of {name}", "{name}'s page", "the page for {name}"),
    "number": ("No. {number}", "the page with the number {number}", "number {number}"),
    "total": ("the page with the total {total}", "the page that totals {total}"),
    "page": ("page {page}",),
}
_THEN = {
    "title": ("that is a {title}",),
    "name": ("of {name}", "for {name}"),
    "number": ("with the number {number}", "No. {number}", "{number}"),
    "total": ("with the total {total}", "over {total}"),
    "page": ("on page {page}",),
}


def fields_of(page: Page) -> dict[str, str]:
    """Return what stands on a page, as a question writes it."""
    found = {"title": page.title.lower(), "number": str(page.number), "total": str(page.total)}
    if page.name is not None:
        found["name"] = page.name.title()
    if page.page is not None:
        found["page"] = str(page.page)
    return found


def question(page: Page, named: list[str], rng: random.Random) -> str:
    """Return a question about a page that names it by some of its fields.

    Args:
        page: what is asked about.
        named: fields of it, the title first if it is among them.
        rng: chooses the wording.
    """
    fields = fields_of(page)
    first, *others = named
    words = [rng.choice(_FIRST[first]), *(rng.choice(_THEN[one]) for one in others)]
    asked = rng.choice([one for one in _ASKED if one not in named] or ["title"])
    written = rng.choice(_ASKED[asked]).format(page=" ".join(words).format(**fields))
    return written[0].upper() + written[1:] if rng.random() < 0.7 else written


def choose_fields(page: Page, rng: random.Random) -> list[str]:
    """Return fields that name a page all but surely: a number or a total, or title and name."""
    there = [one for one in fields_of(page) if one != "page"]
    strong = [one for one in there if one in ("number", "total")]
    if "name" in there and rng.random() < 0.75:  # the hardest: two words that stand apart
        named = ["title", "name"]
    else:
        named = [rng.choice(strong)]
        named += [one for one in there if one not in named and rng.random() < 0.35]
    return sorted(named, key=lambda one: (one != "title", rng.random()))


def write_pairs(folder: Path, count: int, seed: str = SEED, size: int = 256) -> Path:
    """Draw pages and write a question about each; return the JSON Lines file.

    Args:
        folder: is made.
        count: of pages.
        seed: of everything random.
        size: most pixels of a side: the model sees 128.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number in range(count):
        rng = random.Random(f"{seed}-{number}")
        page = random_page(rng)
        name = f"{number:05}.png"
        image = draw_page(page)
        image.thumbnail((size, size))
        image.save(folder / name)
        query = question(page, choose_fields(page, rng), rng)
        lines.append(json.dumps({"query": query, "image": name}))
    file = folder / "pairs.jsonl"
    file.write_text("\n".join([*lines, ""]))
    return file


def main() -> None:
    """Draw, train, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/demo-retrieval"))
    parser.add_argument("--pages", type=int, default=6000)
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--batch", type=int, default=64, help="64 for each process")
    parser.add_argument("--resume", action="store_true")
    asked = parser.parse_args()
    from llavakit.training.config import TrainConfig
    from llavakit.training.run import train

    data = asked.out / "data" / "pairs.jsonl"
    if not data.is_file():
        write_pairs(data.parent, asked.pages)
    settings = {
        "model": "demo",
        "data": str(data),
        "out": str(asked.out / "adapter"),
        "epochs": asked.epochs,
        "batch_size": asked.batch,
        "per_device_batch_size": 64,
        "learning_rate": 2e-3,
        "lora_rank": 16,
        "lora_alpha": 32,
        "lora_dropout": 0.0,
        "hard_negatives": 0,
        "gradient_checkpointing": False,
        "log_steps": 2,
        "save_steps": 40,
        "resume": asked.resume,
    }
    train(TrainConfig.of("retrieve", settings), print)


if __name__ == "__main__":
    main()
