"""Two programs that do the same work, by how much of it they do in a second."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

T = TypeVar("T")


def timed(run: Callable[[], T]) -> tuple[float, T]:
    """Seconds, and what came of it."""
    began = time.perf_counter()
    result = run()
    return time.perf_counter() - began, result


def report(
    title: str,
    unit: str,
    rounds: Sequence[Mapping[str, tuple[float, T]]],
    work: int,
    results: tuple[str, int],
    same: Callable[[T, T], int],
) -> dict[str, dict[str, float]]:
    """Print a table and return it; the first program of a round is the baseline.

    Args:
        title: of the table.
        unit: what the work is counted in.
        rounds: seconds and result of each program.
        work: how much of it a program does in a round.
        results: what is compared, and how many of it there are.
        same: how many of two results agree.
    """
    baseline = next(iter(rounds[0]))
    noun, count = results
    figures: dict[str, dict[str, float]] = {}
    print(f"{title} (median of {len(rounds)})")
    print(f"  {'':<42}{f'{unit}/s':>10}{'ratio':>8}{'same':>9}")
    for name in rounds[0]:
        rate = statistics.median(work / one[name][0] for one in rounds)
        ratio = statistics.median(one[baseline][0] / one[name][0] for one in rounds)
        equal = min(same(one[baseline][1], one[name][1]) for one in rounds)
        figures[name] = {
            f"{unit} per second": round(rate, 4),
            "throughput ratio": round(ratio, 4),
            f"same {noun}": equal,
            noun: count,
        }
        print(f"  {name:<42}{rate:>10.3f}{ratio:>8.2f}{f'{equal}/{count}':>9}")
    print(flush=True)
    return figures
