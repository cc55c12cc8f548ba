"""``python -m benchmarks.confidence``: does the confidence of a reading say which ones are wrong?

The bundled model reads pages of its world that it was never trained on: data by a schema of the
fields that a page has, and transcriptions. A field is right if it is what is printed. The figure
is the area under the ROC curve (AUROC): how often a right reading is given more confidence than a
wrong one, 0.5 being chance. Pages are read as they are drawn, and blurred, where more goes wrong.
"""

from __future__ import annotations

import argparse
import json
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import ImageFilter

import llavakit
from examples.demo_model.pictures import HELD_OUT, picture
from examples.demo_model.world.pages import Page as Drawn
from examples.demo_model.world.pages import draw_page
from llavakit.documents import Page, Reading, extract, transcribe
from llavakit.images import Picture

TYPES = {"title": "string", "number": "integer", "total": "integer", "name": "string"}
TYPES |= {"page": "integer"}
_FIRST = HELD_OUT + 77_000_000  # no other benchmark or test takes these
Scored = list[tuple[bool, float, float]]
"""Whether a reading is right, its mean and its lowest probability."""


def main() -> None:
    """Read the pages; print and write the figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.confidence", description=__doc__)
    parser.add_argument("--pages", type=int, default=600)
    parser.add_argument("--blur", type=float, default=4.0, help="radius in pixels of 512")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    drawn = [picture("page", _FIRST + at) for at in range(options.pages)]
    figures: dict[str, Any] = {"pages": len(drawn), "blur": options.blur}
    for name, blur in (("as drawn", 0.0), ("blurred", options.blur)):
        pages = [_page(one, at, blur) for at, one in enumerate(drawn, 1)]
        data, by_field = _fields(drawn, pages)
        figures[name] = {
            "fields": _figures(data),
            **{f"field {field}": _figures(scored) for field, scored in by_field.items()},
            "transcriptions": _figures(list(_transcriptions(drawn, pages))),
        }
    print(json.dumps(figures, indent=1))
    if options.out:
        options.out.write_text(json.dumps(figures, indent=1) + "\n")


def _page(drawn: Drawn, number: int, blur: float) -> Page:
    image = draw_page(drawn).convert("RGB")
    if blur:
        image = image.filter(ImageFilter.GaussianBlur(blur * image.width / 512))
    return Page("demo world", number, Picture(image))


def _fields(drawn: Sequence[Drawn], pages: Sequence[Page]) -> tuple[Scored, dict[str, Scored]]:
    backend = llavakit.load("demo")
    scored: Scored = []
    by_field: dict[str, Scored] = {name: [] for name in TYPES}
    for names in sorted({_printed(one) for one in drawn}):
        group = [at for at, one in enumerate(drawn) if _printed(one) == names]
        schema = {
            "type": "object",
            "properties": {name: {"type": TYPES[name]} for name in names},
            "required": list(names),
            "additionalProperties": False,
        }
        some = [pages[at] for at in group]
        readings = extract(backend, some, schema, confidence=True, max_tokens=96)
        for at, reading in zip(group, readings, strict=True):
            for name in names:
                field = reading.confidence and reading.confidence.fields.get(f"/{name}")
                if reading.data is None or field is None:
                    continue  # an answer that was cut is known to be no answer
                one = (reading.data[name] == getattr(drawn[at], name), field.mean, field.lowest)
                scored.append(one)
                by_field[name].append(one)
    return scored, by_field


def _printed(drawn: Drawn) -> tuple[str, ...]:
    return tuple(name for name in TYPES if getattr(drawn, name) is not None)


def _transcriptions(
    drawn: Sequence[Drawn], pages: Sequence[Page]
) -> Iterator[tuple[bool, float, float]]:
    readings: Iterator[Reading] = transcribe(
        llavakit.load("demo"), pages, confidence=True, max_tokens=64
    )
    for one, reading in zip(drawn, readings, strict=True):
        assert reading.confidence is not None
        yield reading.text == one.text(), reading.confidence.mean, reading.confidence.lowest


def _figures(scored: Scored) -> dict[str, Any]:
    wrong = [one for one in scored if not one[0]]
    return {
        "readings": len(scored),
        "wrong": len(wrong),
        "AUROC of mean": auroc([(right, mean) for right, mean, _ in scored]),
        "AUROC of lowest": auroc([(right, lowest) for right, _, lowest in scored]),
        "wrong among the 10% with the lowest": _among_lowest(scored),
    }


def _among_lowest(scored: Scored) -> int:
    doubtful = sorted(scored, key=lambda one: one[2])[: max(1, len(scored) // 10)]
    return sum(not right for right, _, _ in doubtful)


def auroc(scored: Sequence[tuple[bool, float]]) -> float | None:
    """Return the area under the ROC curve; ties count half. None without right or wrong ones."""
    right = sorted(score for is_right, score in scored if is_right)
    wrong = sorted(score for is_right, score in scored if not is_right)
    if not (right and wrong):
        return None
    below = sum(bisect_left(wrong, score) + bisect_right(wrong, score) for score in right)
    return round(below / (2 * len(right) * len(wrong)), 4)


if __name__ == "__main__":
    main()
