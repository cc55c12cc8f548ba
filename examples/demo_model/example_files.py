"""Make ``examples/data``: files that the bundled model was seen to answer questions about.

``python -m examples.demo_model.example_files --out examples/data`` tries seeds, all of them held
out, until every question of :mod:`examples.demo_model.world.examples` is answered right, and
writes the questions beside the files.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path

import pypdfium2
from PIL import Image, ImageOps

from llavakit.demo import checkpoint_path

from .evaluate import Model
from .world.dialogue import IMAGE, Dialogue
from .world.examples import Example, write_files

RESOLUTIONS = (100, 144)
"""DPI at which the pages of a PDF are rendered; the answer must be right at all of them."""


def opened(path: Path, page: int | None) -> list[Image.Image]:
    """Return a picture as people see it; a page of a PDF at every resolution."""
    if page is None:
        return [ImageOps.exif_transpose(Image.open(path)).convert("RGB")]
    document = pypdfium2.PdfDocument(path)
    return [
        document[page - 1].render(scale=dpi / 72).to_pil().convert("RGB") for dpi in RESOLUTIONS
    ]


def wrong(model: Model, folder: Path, example: Example) -> str:
    """Return a wrong answer to an example's question, or nothing if it is answered right."""
    shown = [opened(folder / name, example.page) for name in example.files]
    dialogue = Dialogue("", ((f"{IMAGE}\n" * len(shown) + example.question, ""),))
    for variant in range(len(shown[0])):
        images = [variants[min(variant, len(variants) - 1)] for variants in shown]
        answer = model.answer([dialogue.prompt()], [images])[0]
        if answer != example.answer:
            return answer or "(nothing)"
    return ""


def main() -> None:
    """Write files and questions."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("examples/data"))
    parser.add_argument("--checkpoint", type=Path, default=checkpoint_path())
    parser.add_argument("--tries", type=int, default=30)
    args = parser.parse_args()
    model = Model(args.checkpoint)
    best: tuple[int, int] | None = None
    for seed in range(args.tries):
        with tempfile.TemporaryDirectory() as made:
            failed = 0
            for example in write_files(Path(made), seed):
                answer = wrong(model, Path(made), example)
                if answer:
                    failed += 1
                    print(f"seed {seed}: {example.question} {example.answer!r}, not {answer!r}")
        if best is None or failed < best[0]:
            best = (failed, seed)
        if not failed:
            break
    assert best is not None
    with tempfile.TemporaryDirectory() as made:
        examples = write_files(Path(made), best[1])
        kept = [example for example in examples if not wrong(model, Path(made), example)]
        args.out.mkdir(parents=True, exist_ok=True)
        for path in Path(made).iterdir():
            shutil.copyfile(path, args.out / path.name)
    text = json.dumps([example.as_json() for example in kept], indent=2, ensure_ascii=False)
    (args.out / "questions.json").write_text(text + "\n")
    print(f"seed {best[1]}: {len(kept)} of {len(examples)} questions answered right and kept")


if __name__ == "__main__":
    main()
