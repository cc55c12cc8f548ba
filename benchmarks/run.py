"""``make bench``: ratios to plain ``transformers.generate``, measured in this one run.

Machines are noisy and differ, so nothing here is an absolute promise: every line compares
two programs that ran in turn on the same weights, and gives the median of the repeats.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.bench_model import build, pictures, question
from benchmarks.contenders import Generate, Llavakit, Timing, Turns


def main() -> None:
    """Run all workloads and print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="write the figures as JSON, too")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(options.threads)
    print(_versions(options.threads), "\n")
    figures = {"demo": demo(options.repeats)}
    with tempfile.TemporaryDirectory() as folder:
        path = build(Path(folder) / "bench")
        figures |= shared_pictures(path, options.repeats)
        figures |= chat(path, options.repeats)
        figures |= decode(path, options.repeats)
    if options.out:
        options.out.write_text(json.dumps({"versions": _versions(options.threads), **figures}, indent=1))


def demo(repeats: int) -> dict[str, float]:
    """The bundled model: one question about one picture, greedy."""
    from PIL import Image as PILImage
    from PIL import ImageDraw

    from llavakit.demo import checkpoint_path
    from llavakit.model.loader import load_reader

    path = checkpoint_path()
    picture = PILImage.new("RGB", (256, 256), "white")
    ImageDraw.Draw(picture).ellipse((60, 60, 190, 190), fill="red")
    requests: list[Turns] = [[("user", [picture, "Describe the image."])]]
    peer = Generate(path, load_reader(path).special.forbidden)
    ours = Llavakit(path)
    rows = _alternate(peer, ours, requests, 32, max(5, repeats))
    return _report("demo model, one question (32 tokens at most)", rows)


def shared_pictures(path: Path, repeats: int) -> dict[str, Any]:
    """16 requests at once: 4 pictures x 4 questions, 576 image tokens each."""
    requests: list[Turns] = [
        [("user", [picture, question(number * 4 + other)])]
        for number, picture in enumerate(pictures(4))
        for other in range(4)
    ]
    peer, ours = Generate(path, [3]), Llavakit(path)
    rows = _alternate(peer, ours, requests, 32, repeats)
    return {"shared pictures": _report("16 requests, 4 pictures x 4 questions, 32 tokens", rows)}


def chat(path: Path, repeats: int) -> dict[str, Any]:
    """Six turns about one picture: how soon the later turns begin."""
    turns = [question(100 + number) for number in range(6)]
    picture = pictures(5)[4]
    peer, ours = Generate(path, [3]), Llavakit(path)
    plain, kept, own = [], [], []
    for _ in range(repeats):
        plain.append(_later(peer.chat(turns, picture, 16, keep=False)))
        kept.append(_later(peer.chat(turns, picture, 16, keep=True)))
        ours.forget()
        own.append(_later(ours.chat(turns, picture, 16)))
    figures = {
        "first token sooner than generate": _median(plain) / _median(own),
        "first token sooner than generate with past_key_values": _median(kept) / _median(own),
    }
    return {"chat, turns 2-6": _print("chat of six turns on one picture, turns 2-6", figures)}


def decode(path: Path, repeats: int) -> dict[str, Any]:
    """One request, text only: tokens a second."""
    requests: list[Turns] = [[("user", [question(200)])]]
    peer, ours = Generate(path, [3]), Llavakit(path)
    rows = _alternate(peer, ours, requests, 128, max(3, repeats))
    return {"decode": _report("one request, 128 tokens", rows)}


def _alternate(
    peer: Generate, ours: Llavakit, requests: Sequence[Turns], max_tokens: int, repeats: int
) -> list[tuple[list[Timing], list[Timing]]]:
    """Both contenders in turn, so that a noisy minute hits both; ours without its caches."""
    peer.run(requests[:1], 2)
    rows = []
    for _ in range(repeats):
        theirs = peer.run(requests, max_tokens)
        ours.forget()
        rows.append((theirs, ours.run(requests, max_tokens)))
    return rows


def _report(title: str, rows: list[tuple[list[Timing], list[Timing]]]) -> dict[str, float]:
    def rate(timings: list[Timing]) -> float:
        return sum(t.tokens for t in timings) / max(t.last for t in timings)

    def first(timings: list[Timing]) -> float:
        return statistics.mean(t.first for t in timings)

    figures = {
        "generate, tokens/s": _median([rate(theirs) for theirs, _ in rows]),
        "llavakit, tokens/s": _median([rate(ours) for _, ours in rows]),
        "throughput ratio": _median([rate(ours) / rate(theirs) for theirs, ours in rows]),
        "generate, first token s": _median([first(theirs) for theirs, _ in rows]),
        "llavakit, first token s": _median([first(ours) for _, ours in rows]),
        "first token sooner, ratio": _median([first(t) / first(o) for t, o in rows]),
    }
    return _print(title, figures)


def _print(title: str, figures: dict[str, float]) -> dict[str, float]:
    print(title)
    for name, value in figures.items():
        print(f"  {name:<56}{value:10.3f}")
    print(flush=True)
    return {name: round(value, 4) for name, value in figures.items()}


def _later(firsts: list[float]) -> float:
    return statistics.mean(firsts[1:])


def _median(values: Sequence[float]) -> float:
    return statistics.median(values)


def _versions(threads: int) -> str:
    import accelerate
    import transformers

    return (
        f"torch {torch.__version__}, transformers {transformers.__version__}, "
        f"accelerate {accelerate.__version__}, Python {platform.python_version()}, "
        f"{threads} of {os.cpu_count()} threads"
    )


if __name__ == "__main__":
    main()
