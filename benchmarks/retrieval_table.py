"""The figures of ``benchmarks.retrieval`` as tables of Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def tables(figures: Mapping[str, Any]) -> str:
    """Return the tables: all ways, the kinds of questions, and pooling where it was measured."""
    ways, pooling = figures["ways"], figures["pooling"]
    head = f"{figures['questions']} questions with one right page each, among {figures['pages']}"
    parts = [f"{head} drawn pages that no model was trained on; on {figures['machine']}."]
    if (load := figures.get("load average beside it")) is not None:
        parts.append(
            f"The machine's load average was {load}: speeds are of a share of it where that is "
            "more than its processors."
        )
    if "pages transcribed without a fault" in figures:
        right = figures["pages transcribed without a fault"]
        parts.append(f"Of the pages, {right} were transcribed without a fault.")
    parts.append(_ways(ways))
    parts.append(_kinds(ways))
    if pooling:
        parts.append(_pooling(pooling))
    return "\n\n".join(parts) + "\n"


def _ways(ways: Mapping[str, Any]) -> str:
    header = ("pages found by", "nDCG@5", "recall@1", "pages a second", "bytes a page", "query ms")
    rows = [
        (
            name,
            _interval(way["nDCG@5"]),
            _interval(way["recall@1"]),
            _number(way["pages per second"]),
            _number(way["bytes per page"]),
            _number(way["query ms"]),
        )
        for name, way in ways.items()
    ]
    return _table([header, *rows])


def _kinds(ways: Mapping[str, Any]) -> str:
    kinds = list(next(iter(ways.values()))["nDCG@5 by kind"])
    rows = [
        (name, *(f"{way['nDCG@5 by kind'][kind]:.3f}" for kind in kinds))
        for name, way in ways.items()
    ]
    return _table([("nDCG@5, a question names", *kinds), *rows])


def _pooling(pooling: Mapping[str, Any]) -> str:
    whole = pooling["1"]["nDCG@5"][0]
    rows = [
        (
            factor,
            _number(one["vectors per page"]),
            _number(one["bytes per page"]),
            _number(one["query ms"]),
            _interval(one["nDCG@5"]),
            f"{one['nDCG@5'][0] - whole:+.3f}",
        )
        for factor, one in pooling.items()
    ]
    header = ("pooled by", "vectors a page", "bytes a page", "query ms", "nDCG@5", "cost")
    return _table([header, *rows])


def _table(rows: Sequence[Sequence[str]]) -> str:
    header, *others = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join([header, "|---" * len(rows[0]) + "|", *others])


def _interval(values: Sequence[float]) -> str:
    value, low, high = values
    return f"{value:.3f} ({low:.3f} to {high:.3f})"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.4g}" if value < 1000 else f"{value:,.0f}"
