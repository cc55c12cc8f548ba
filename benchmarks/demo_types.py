"""``python -m benchmarks.demo_types``: how right the bundled model is in fp32, bf16, 8 and 4 bits.

First questions of the held-out cases by which the model's card was made, exact matches, on a CPU.
Logits are a finer measure (``tests/model/test_quantization.py``); this is what a user notices.
"""

from __future__ import annotations

import argparse
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import llavakit
from examples.demo_model.evaluate import Case, held_out_cases, image_of
from examples.demo_model.world.dialogue import IMAGE
from llavakit import Image, Message, SamplingParams
from llavakit.demo import checkpoint_path

TYPES: dict[str, dict[str, Any]] = {
    "fp32": {"dtype": "float32"},
    "bf16": {"dtype": "bfloat16"},
    "8 bit": {"quantization": "8bit"},
    "4 bit": {"quantization": "4bit"},
}
KINDS = ("scene", "page", "several", "text", "picture", "dialogue")


def main() -> None:
    """Ask the same cases of each type; print a table, and how many answers differ from fp32."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo_types", description=__doc__)
    parser.add_argument("--samples", type=int, default=20, help="cases for every row of the card")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    cases = list(held_out_cases(options.samples))
    answers = {name: _answers(cases, how) for name, how in TYPES.items()}
    figures: dict[str, Any] = {}
    for kind in (*KINDS, "together"):
        of = [n for n, case in enumerate(cases) if kind in ("together", _kind(case))]
        figures[kind] = {"cases": len(of)} | {
            name: sum(found[n] == cases[n].dialogue.turns[0][1] for n in of) / len(of)
            for name, found in answers.items()
        }
    figures["as in fp32"] = {"cases": len(cases)} | {
        name: sum(map(str.__eq__, found, answers["fp32"])) / len(cases)
        for name, found in answers.items()
    }
    for kind, row in figures.items():
        shares = " | ".join(f"{row[name]:.3f}" for name in TYPES)
        print(f"| {kind} | {row['cases']} | {shares} |")
    if options.out:
        options.out.write_text(json.dumps(figures, indent=1) + "\n")


def _kind(case: Case) -> str:
    return next(kind for kind in KINDS if case.row.startswith(kind))


def _answers(cases: list[Case], how: dict[str, Any]) -> list[str]:
    backend = llavakit.load(checkpoint_path(), device="cpu", **how)
    params = SamplingParams(temperature=0, max_tokens=160)

    def ask(case: Case) -> str:
        answer = backend.generate(_messages(case), params).text
        return answer[1:] if answer.startswith(" ") else answer

    with ThreadPoolExecutor(16) as askers:
        found = list(askers.map(ask, cases))
    backend.close()
    return found


def _messages(case: Case) -> list[Message]:
    """The system text and the first question, with images where its markers stand."""
    said = [] if case.dialogue.system is None else [Message("system", [case.dialogue.system])]
    pictures = iter(case.pictures)
    parts: list[Any] = []
    pieces = case.dialogue.turns[0][0].split(IMAGE)
    for number, text in enumerate(pieces):
        if number:
            parts.append(Image(image_of(next(pictures))))
            text = text.removeprefix("\n")
        if text:
            parts.append(text)
    return [*said, Message("user", parts)]


if __name__ == "__main__":
    main()
