"""What the bundled model's retrieval adapter learns from: drawn pages, and questions that name one.

A question names a page by what stands on it, as people ask: by title and name, by a number, by a
total, in many wordings. Beside its page stand pages that differ in one thing that it names, so
that each of them must be read. ``python -m examples.demo_model.retrieval`` draws the data, trains
the adapter by ``llavakit train retrieve``, and writes it as the checkpoint carries it.
"""

from __future__ import annotations

import argparse
import json
import random
from dataclasses import replace
from pathlib import Path

from .world.pages import NAMES, TITLES, Page, draw_page, random_page

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
    """Return fields that name a page all but surely: a number, a total, or a name with another."""
    there = [one for one in fields_of(page) if one != "page"]
    strong = rng.choice(("number", "total"))
    if page.name is not None and rng.random() < 0.7:
        named = ["name", "title" if rng.random() < 0.7 else strong]
    else:
        named = [strong]
        named += [one for one in there if one not in named and rng.random() < 0.35]
    return sorted(named, key=lambda one: (one != "title", rng.random()))


def page_to_ask_about(rng: random.Random) -> Page:
    """Return a random page; most have a name, for names are the hardest to find."""
    page = random_page(rng)
    return replace(page, name=rng.choice(NAMES)) if rng.random() < 0.6 else page


def differ_in(field: str, page: Page, named: list[str], rng: random.Random) -> Page:
    """Return another page with what a question names of a page, except for one field."""
    other = random_page(rng)
    same = {one: getattr(page, one) for one in named if one != field}
    if field == "title":
        changed: str | int = rng.choice([one for one in TITLES if one != page.title])
    elif field == "name":
        changed = rng.choice([one for one in NAMES if one != page.name])
    else:
        changed = _other_digit(getattr(page, field), rng)
    return replace(other, **{**same, field: changed})


def _other_digit(number: int, rng: random.Random) -> int:
    """Change one digit; no number begins with a zero."""
    digits = list(str(number))
    place = rng.randrange(len(digits))
    digits[place] = rng.choice([one for one in "123456789" if one != digits[place]])
    return int("".join(digits))


def write_pairs(folder: Path, count: int, seed: str = SEED, size: int = 256) -> Path:
    """Draw pages and write a question about each; return the JSON Lines file.

    Args:
        folder: is made.
        count: of questions; each has a page and, for up to two things that it names, one that
            differs in it.
        seed: of everything random.
        size: most pixels of a side: the model sees 128.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number in range(count):
        rng = random.Random(f"{seed}-{number}")
        page = page_to_ask_about(rng)
        named = choose_fields(page, rng)
        query = question(page, named, rng)
        changed = rng.sample(named, min(2, len(named)))
        drawn = [page, *(differ_in(field, page, named, rng) for field in changed)]
        names = [f"{number:05}{suffix}.png" for suffix in ("", "-a", "-b")[: len(drawn)]]
        for one, name in zip(drawn, names, strict=True):
            image = draw_page(one)
            image.thumbnail((size, size))
            image.save(folder / name)
        lines.append(json.dumps({"query": query, "image": names[0], "negatives": names[1:]}))
    file = folder / "pairs.jsonl"
    file.write_text("\n".join([*lines, ""]))
    return file


def bundle(adapter: Path, out: Path, steps: int) -> None:
    """Write an adapter as the checkpoint carries it: in half precision, and without any path.

    Args:
        adapter: what training left.
        out: is made.
        steps: how many there were.
    """
    import torch
    from safetensors.torch import load_file, save_file

    out.mkdir(parents=True, exist_ok=True)
    state = load_file(adapter / "adapter_model.safetensors")
    halves = {name: one.to(torch.float16) for name, one in state.items()}
    save_file(halves, out / "adapter_model.safetensors", metadata={"format": "pt"})
    settings = json.loads((adapter / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = "demo"
    kept = {name: one for name, one in settings.items() if one not in (None, [], {}, False)}
    (out / "adapter_config.json").write_text(json.dumps(kept, indent=2, sort_keys=True) + "\n")
    about = json.loads((adapter / "retrieval.json").read_text())
    about |= {"base_model": "demo", "steps": steps}
    (out / "retrieval.json").write_text(json.dumps(about, indent=2, sort_keys=True) + "\n")


def main() -> None:
    """Draw, train, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/demo-retrieval"))
    parser.add_argument("--pages", type=int, default=9000)
    parser.add_argument("--epochs", type=float, default=3.5)
    parser.add_argument("--batch", type=int, default=32, help="questions a step")
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
        "per_device_batch_size": asked.batch,
        "learning_rate": 2e-3,
        "lora_rank": 16,
        "lora_alpha": 32,
        "lora_dropout": 0.0,
        "hard_negatives": 0,  # the data has its own
        "workers": 1,
        "gradient_checkpointing": False,
        "log_steps": 2,
        "save_steps": 40,
        "resume": asked.resume,
    }
    made = train(TrainConfig.of("retrieve", settings), print)
    bundle(made.out, asked.out / "bundle", made.steps)
    print(f"Copy {asked.out / 'bundle'} to src/llavakit/demo/checkpoint/retrieval to ship it.")


if __name__ == "__main__":
    main()
