"""Scores with their uncertainty.

Shares of right answers get Wilson's interval (1927). Everything else (soft scores, F1, sums) gets
the percentiles of a bootstrap (Efron 1979) with a fixed seed, so that the same answers always
give the same table. Both are 95% intervals, and both take questions for independent of each
other: where several are asked about one image, the truth is a little wider.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from llavakit.evaluation.metrics import Counts

Interval = tuple[float, float]
Unit = Literal["%", "points"]

_Z = 1.959963984540054  # of the standard normal distribution, for 95%
_RESAMPLES = 2000
_SEED = 0


@dataclass(frozen=True, slots=True)
class Score:
    """One figure of a benchmark.

    Attributes:
        name: what it is.
        value: in ``unit``; None where nothing could be counted.
        low, high: the ends of its 95% interval.
        interval: how the interval was found, ``"wilson"`` or ``"bootstrap"``.
        questions: the number of questions that it is computed from.
        unit: ``"%"``, or ``"points"`` where a benchmark adds percentages up.
    """

    name: str
    value: float | None
    low: float | None
    high: float | None
    interval: str | None
    questions: int
    unit: Unit = "%"


def share(name: str, part: int, whole: int) -> Score:
    """Return a share of right answers, in percent."""
    if not whole:
        return Score(name, None, None, None, None, 0)
    low, high = wilson(part, whole)
    return Score(name, 100 * part / whole, 100 * low, 100 * high, "wilson", whole)


def mean(name: str, values: Sequence[float]) -> Score:
    """Return the mean of soft scores from 0 to 1, in percent."""
    return sum_of_means(name, [values], 100, "%")


def sum_of_means(
    name: str, strata: Sequence[Sequence[float]], scale: float = 1, unit: Unit = "points"
) -> Score:
    """Return the sum of the means of several groups, each resampled on its own."""
    strata = [values for values in strata if values]
    if not strata:
        return Score(name, None, None, None, None, 0, unit)
    value = sum(sum(values) / len(values) for values in strata)
    samples = sum(_means(values, _SEED + number) for number, values in enumerate(strata))
    low, high = _middle(samples)
    count = sum(map(len, strata))
    return Score(name, scale * value, scale * low, scale * high, "bootstrap", count, unit)


def f1(name: str, groups: Sequence[Counts]) -> Score:
    """Return the mean of the F1 scores of groups, in percent."""
    values = [group.f1 for group in groups]
    questions = sum(group.total for group in groups)
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return Score(name, None, None, None, None, questions)
    samples = sum(_f1s(group, _SEED + number) for number, group in enumerate(groups))
    low, high = _middle(samples / len(groups))
    value = sum(known) / len(known)
    return Score(name, 100 * value, 100 * low, 100 * high, "bootstrap", questions)


def wilson(part: int, whole: int) -> Interval:
    """Return the 95% interval of a share, within 0 and 1; ``whole`` is at least 1."""
    rate = part / whole
    spread = 1 + _Z**2 / whole
    centre = (rate + _Z**2 / (2 * whole)) / spread
    half = _Z / spread * (rate * (1 - rate) / whole + _Z**2 / (4 * whole**2)) ** 0.5
    return max(0.0, min(rate, centre - half)), min(1.0, max(rate, centre + half))


def _means(values: Sequence[float], seed: int) -> Any:
    """Means of resamples, [resamples]: equal values are sampled together, so size costs nothing."""
    import numpy as np

    counts = Counter(values)
    worth = np.array(list(counts), dtype=float)
    counted = _resampled(list(counts.values()), seed)
    return counted @ worth / len(values)


def _f1s(group: Counts, seed: int) -> Any:
    import numpy as np

    cells = [group.tp, group.fp, group.fn, group.tn]
    tp, fp, fn, _ = _resampled(cells, seed).T
    whole = 2 * tp + fp + fn
    # A resample without any positive has no F1, and is left out.
    return np.where(whole > 0, 2 * tp / np.maximum(whole, 1), np.nan)


def _resampled(counts: Sequence[int], seed: int) -> Any:
    """Counts of resamples, [resamples, cells]."""
    import numpy as np

    total = sum(counts)
    shares = np.array(counts, dtype=float) / total
    return np.random.default_rng(seed).multinomial(total, shares / shares.sum(), _RESAMPLES)


def _middle(samples: Any) -> Interval:
    import numpy as np

    low, high = np.nanpercentile(samples, (2.5, 97.5))
    return float(low), float(high)
