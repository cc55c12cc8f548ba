"""What `make demo` runs: real files, real questions, the bundled model, through LangChain.

Pictures (PNG, a JPEG that a camera turned, WebP) and a page of a PDF go into ``ChatLLaVA``
like into any other chat model. Every answer is compared with the right one.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from langchain_core.messages import HumanMessage

from llavakit.documents import open_pages
from llavakit.langchain import ChatLLaVA

DATA = Path(__file__).parent / "data"


def question(entry: dict[str, Any]) -> HumanMessage:
    """A message with the pictures of an entry of ``questions.json`` and its question."""
    blocks: list[dict[str, Any]] = []
    for name in entry.get("files") or [entry["file"]]:
        if name.endswith(".pdf"):
            (page,) = open_pages(DATA / name, pages=[entry.get("page", 1)])
            blocks.append({"type": "image", "image": page.picture.rgb})
        else:
            blocks.append({"type": "image", "path": str(DATA / name)})
    return HumanMessage([*blocks, {"type": "text", "text": entry["question"]}])


def named(entry: dict[str, Any]) -> str:
    """The files of an entry in a few characters."""
    names = " + ".join(entry.get("files") or [entry["file"]])
    return f"{names} p.{entry['page']}" if "page" in entry else names


def main() -> int:
    """Ask everything at once; 0 if all answers are right."""
    entries = json.loads((DATA / "questions.json").read_text())
    model = ChatLLaVA(model="demo", temperature=0, max_tokens=64)
    began = time.perf_counter()
    answers = [answer.text for answer in model.batch([[question(entry)] for entry in entries])]
    seconds = time.perf_counter() - began
    right = 0
    for entry, answer in zip(entries, answers, strict=True):
        good = answer == entry["answer"]
        right += good
        shown = answer.replace("\n", " / ")
        print(f"{'ok  ' if good else 'BAD '} {named(entry):<26} {entry['question']:<44} {shown}")
        if not good:
            print(f"{'':31} expected: {entry['answer']!r}")
    stats = model.backend_for().stats()
    print(
        f"\n{right} of {len(entries)} right in {seconds:.1f} s, loading included; "
        f"{stats['images_encoded']} pictures encoded, {stats['generated_tokens']} tokens drawn."
    )
    return 0 if right == len(entries) else 1


if __name__ == "__main__":
    sys.exit(main())
