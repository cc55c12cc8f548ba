"""Medians of the rounds, as figures and as a printed table."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

from benchmarks.peers.rounds import Results

Figures = dict[str, dict[str, Any]]
Replies = list[dict[str, Any]]
BASELINE = "generate fp32"
"""Its answers are what others' are compared with."""


def _throughput(replies: Replies) -> float:
    tokens, seconds = sum(one["tokens"] for one in replies), max(one["last"] for one in replies)
    return float(tokens / seconds)


def _mean_first(replies: Replies) -> float:
    return float(statistics.mean(reply["first"] for reply in replies))


def _decoding(replies: Replies) -> float:
    """Tokens a second behind the first one."""
    (reply,) = replies
    return float((reply["tokens"] - 1) / (reply["last"] - reply["first"]))


FIGURES: dict[str, tuple[str, Callable[[Replies], float]]] = {
    "together, tokens per second": ("together", _throughput),
    "together, first token seconds": ("together", _mean_first),
    "single, tokens per second": ("single", _decoding),
    "single, first token seconds": ("single", _mean_first),
    "chat, first turn seconds": ("chat", lambda replies: replies[0]["first"]),
    "chat, later turns seconds": ("chat", lambda replies: _mean_first(replies[1:])),
}
"""The workload that a figure is of, and how it follows from a round's replies."""

COLUMNS = {
    "together, tokens per second": ("16 tok/s", 1),
    "together, first token seconds": ("first s", 2),
    "single, tokens per second": ("1 tok/s", 1),
    "single, first token seconds": ("first s", 3),
    "chat, first turn seconds": ("turn 1 s", 3),
    "chat, later turns seconds": ("2-6 s", 3),
    "peak memory MiB": ("MiB", 0),
}
"""Heading and decimals."""


def figures_of(results: Results) -> Figures:
    """Medians of each contender, with the smallest and the largest of each throughput."""
    return {name: _figures(rounds, results.get(BASELINE)) for name, rounds in results.items()}


def _figures(rounds: list[dict[str, Any]], baseline: list[dict[str, Any]] | None) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for name, (workload, figure) in FIGURES.items():
        values = [figure(one["replies"][workload]) for one in rounds if workload in one["replies"]]
        if values:
            figures[name] = round(statistics.median(values), 4)
            if name.endswith("per second"):
                figures[f"{name}, range"] = [round(min(values), 4), round(max(values), 4)]
    figures["peak memory MiB"] = statistics.median(one["memory"] for one in rounds)
    if baseline:
        pairs = list(zip(baseline, rounds, strict=False))
        figures["same answers"] = min(_same(expected, given) for expected, given in pairs)
        figures["answers"] = sum(map(len, rounds[0]["replies"].values()))
    return figures


def _same(expected: dict[str, Any], given: dict[str, Any]) -> int:
    """How many answers have the same text and the same number of tokens."""
    return sum(
        (one["text"], one["tokens"]) == (other["text"], other["tokens"])
        for workload, replies in expected["replies"].items()
        for one, other in zip(replies, given["replies"][workload], strict=True)
    )


def lines_of(figures: Figures) -> list[str]:
    """The table's lines; only columns that were measured."""
    columns = {
        key: column
        for key, column in COLUMNS.items()
        if any(key in measured for measured in figures.values())
    }
    heading = "".join(f"{title:>10}" for title, _ in columns.values())
    lines = [f"  {'':<18}{heading}{'same':>8}"]
    for name, measured in figures.items():
        cells = "".join(f"{measured[key]:>10.{places}f}" for key, (_, places) in columns.items())
        same = f"{measured['same answers']}/{measured['answers']}" if "answers" in measured else "-"
        lines.append(f"  {name:<18}{cells}{same:>8}")
    return lines
