"""``make bench``: ratios to plain ``transformers.generate``, measured in this one run.

Machines are noisy and differ, so nothing here is an absolute promise: every line compares
programs that ran in turn on the same weights, and gives the median of the repeats. A figure
counts only if the answers are the same, so that is counted and printed, too.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import logging
import os
import platform
import statistics
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import learning, reading
from benchmarks.bench_model import build, pictures, question
from benchmarks.contenders import Contender, Generate, Llavakit, Timing, Turns
from benchmarks.continuous import ContinuousBatching

Figures = dict[str, dict[str, float]]
PEERS = ("torch", "transformers", "accelerate", "tokenizers", "numpy", "pillow")


def main() -> None:
    """Run all workloads and print a table for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", choices=WORKLOADS, help="run one workload")
    parser.add_argument("--out", type=Path, help="write the figures as JSON, too")
    options = parser.parse_args()
    quiet()
    torch.set_num_threads(options.threads)
    versions = _versions(options.threads)
    print(versions, "\n", flush=True)
    figures: dict[str, Any] = {"versions": versions}
    with tempfile.TemporaryDirectory() as folder:
        path = build(Path(folder) / "bench")
        for name, workload in WORKLOADS.items():
            if options.only in (None, name):
                figures[name] = workload(path, options.repeats)
    if options.out:
        options.out.write_text(json.dumps(figures, indent=1) + "\n")


def demo(_: Path, repeats: int) -> Figures:
    """The bundled model: one question about one image, greedy."""
    from PIL import Image as PILImage
    from PIL import ImageDraw

    from llavakit.demo import checkpoint_path
    from llavakit.model.loader import load_reader

    path = checkpoint_path()
    picture = PILImage.new("RGB", (256, 256), "white")
    ImageDraw.Draw(picture).ellipse((60, 60, 190, 190), fill="red")
    requests: list[Turns] = [[("user", [picture, "Describe the image."])]]
    contenders = [Generate(path, load_reader(path).special.forbidden), Llavakit(path)]
    rounds = _in_turn(contenders, requests, 32, max(5, repeats))
    return _report("demo model, one question (32 tokens at most)", rounds)


def shared_pictures(path: Path, repeats: int) -> Figures:
    """16 requests at once: 4 images x 4 questions, 576 image tokens each."""
    requests: list[Turns] = [
        [("user", [picture, question(number * 4 + other)])]
        for number, picture in enumerate(pictures(4))
        for other in range(4)
    ]
    contenders = [Generate(path, [3]), ContinuousBatching(path, [3]), Llavakit(path)]
    rounds = _in_turn(contenders, requests, 32, repeats)
    return _report("16 requests at once, 4 images x 4 questions, 32 tokens each", rounds)


def chat(path: Path, repeats: int) -> Figures:
    """Six turns about one image: how soon the later turns begin."""
    turns = [question(100 + number) for number in range(6)]
    picture = pictures(5)[4]
    peer, ours = Generate(path, [3]), Llavakit(path)
    rounds = []
    for _ in range(repeats):
        ours.forget()
        rounds.append(
            {
                peer.name: peer.chat(turns, picture, 16, keep=False)[1:],
                f"{peer.name}, past_key_values kept": peer.chat(turns, picture, 16, keep=True)[1:],
                ours.name: ours.chat(turns, picture, 16)[1:],
            }
        )
    return _report("chat of six turns on one image, turns 2-6, 16 tokens each", rounds, sum)


def decode(path: Path, repeats: int) -> Figures:
    """One request, text only: tokens a second."""
    requests: list[Turns] = [[("user", [question(200)])]]
    rounds = _in_turn([Generate(path, [3]), Llavakit(path)], requests, 128, max(3, repeats))
    return _report("one request, 128 tokens", rounds)


def read(path: Path, repeats: int) -> Figures:
    """16 pages of print, 256 tokens each, out of a PDF: pages a second."""
    return reading.measure(path, repeats)


def read_lines(path: Path, repeats: int) -> Figures:
    """As :func:`read`, with few tokens a page, where reading images takes a good part."""
    return reading.measure(path, repeats, max_tokens=96)


def train(path: Path, repeats: int) -> Figures:
    """Questions about pages, learnt one by one and page by page: records a second."""
    return learning.measure(path, repeats)


WORKLOADS: dict[str, Callable[[Path, int], Figures]] = {
    "demo": demo,
    "shared images": shared_pictures,
    "chat": chat,
    "decode": decode,
    "read": read,
    "read lines": read_lines,
    "train": train,
}

Round = dict[str, list[Timing]]


def _in_turn(
    contenders: Sequence[Contender], requests: Sequence[Turns], max_tokens: int, repeats: int
) -> list[Round]:
    """All contenders in turn, so that a noisy minute hits all; caches are empty each time."""
    for contender in contenders:
        contender.run(requests[:1], 2)
    rounds = []
    for _ in range(repeats):
        one: Round = {}
        for contender in contenders:
            contender.forget()
            one[contender.name] = contender.run(requests, max_tokens)
        rounds.append(one)
    return rounds


def _report(
    title: str, rounds: list[Round], seconds: Callable[[list[float]], float] = max
) -> Figures:
    """Print a table and return it; the first contender of a round is the baseline.

    ``seconds`` says how long a run took, given when its answers ended: requests that run
    together end with the last one, turns of a chat follow each other.
    """

    def rate(timings: list[Timing]) -> float:
        return sum(t.tokens for t in timings) / seconds([t.last for t in timings])

    def first(timings: list[Timing]) -> float:
        return statistics.mean(t.first for t in timings)

    baseline = next(iter(rounds[0]))
    figures: Figures = {}
    print(f"{title} (median of {len(rounds)})")
    print(f"  {'':<42}{'tokens/s':>10}{'ratio':>8}{'first s':>10}{'sooner':>8}{'same':>9}")
    for name in rounds[0]:
        same = [_same(one[baseline], one[name]) for one in rounds]
        requests = len(rounds[0][name])
        figures[name] = {
            "tokens per second": _median(rate(one[name]) for one in rounds),
            "throughput ratio": _median(rate(one[name]) / rate(one[baseline]) for one in rounds),
            "first token seconds": _median(first(one[name]) for one in rounds),
            "first token sooner": _median(
                first(one[baseline]) / first(one[name]) for one in rounds
            ),
            "same answers": min(same),
            "answers": requests,
        }
        rates, ratio, began, sooner, *_ = figures[name].values()
        print(
            f"  {name:<42}{rates:>10.1f}{ratio:>8.2f}{began:>10.3f}{sooner:>8.2f}"
            f"{f'{min(same)}/{requests}':>9}"
        )
    print(flush=True)
    return figures


def _same(expected: list[Timing], given: list[Timing]) -> int:
    """How many answers have the same text and the same number of tokens."""
    pairs = zip(expected, given, strict=True)
    return sum((one.text, one.tokens) == (other.text, other.tokens) for one, other in pairs)


def _median(values: Any) -> float:
    return round(statistics.median(values), 4)


def quiet() -> None:
    """Nothing but the tables."""
    from transformers.utils import logging as hf_logging

    warnings.simplefilter("ignore")
    hf_logging.disable_progress_bar()
    logging.getLogger("ContinuousBatchingLogger").setLevel(logging.ERROR)


def _versions(threads: int) -> str:
    packages = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PEERS)
    return (
        f"llavakit {importlib.metadata.version('llavakit')}, {packages}, "
        f"Python {platform.python_version()} on {platform.machine()}, "
        f"{threads} of {os.cpu_count()} threads"
    )


if __name__ == "__main__":
    main()
