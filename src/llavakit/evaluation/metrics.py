"""Scores of answers: VQA accuracy, ANLS, and yes-or-no counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from llavakit._checks import checked, members
from llavakit.errors import ParameterError
from llavakit.evaluation.answers import YesNo, vqa_answer


@checked
def vqa_accuracy(answer: str, people: Sequence[str]) -> float:
    """Return the share of people's answers that an answer agrees with, softened: 0 to 1.

    Each of the people is left out once, and the answer is right in part if fewer than three of the
    others gave it (Antol et al. 2015, "VQA"); both sides are read by :func:`vqa_answer`.

    Args:
        answer: what the model wrote.
        people: what people answered, ten of them in the benchmarks; at least one.

    Raises:
        ParameterError: ``people`` is empty.
    """
    if not people:
        raise ParameterError("people is empty; give at least one person's answer.")
    agreed = Counter(map(vqa_answer, people))[vqa_answer(answer)]
    of_those = agreed * min(1.0, (agreed - 1) / 3)
    of_others = (len(people) - agreed) * min(1.0, agreed / 3)
    return (of_those + of_others) / len(people)


@checked
def anls(answer: str, accepted: Sequence[str]) -> float:
    """Return the average normalised Levenshtein similarity of one answer, 0 or 0.5 to 1.

    The similarity to the nearest accepted answer, regardless of case and spacing; similarity below
    one half counts as 0 (Biten et al. 2019; the threshold as in the challenge's own script, where
    one half still counts).

    Args:
        answer: what the model wrote.
        accepted: right answers; at least one.

    Raises:
        ParameterError: ``accepted`` is empty.
    """
    if not accepted:
        raise ParameterError("accepted is empty; give at least one right answer.")
    given = _spaced(answer)
    best = max(_likeness(given, _spaced(right)) for right in accepted)
    return best if best >= 0.5 else 0.0


def _spaced(text: str) -> str:
    return " ".join(text.lower().split())


def _likeness(one: str, other: str) -> float:
    longest = max(len(one), len(other))
    return 1.0 if longest == 0 else 1 - distance(one, other) / longest


def distance(one: str, other: str) -> int:
    """Return how many letters must be put in, taken out or changed (Levenshtein 1966)."""
    row = list(range(len(other) + 1))
    for at, letter in enumerate(one, 1):
        above, row[0] = row[0], at
        for column, wanted in enumerate(other, 1):
            cost = min(row[column] + 1, row[column - 1] + 1, above + (letter != wanted))
            above, row[column] = row[column], cost
    return row[-1]


@dataclass(frozen=True, slots=True)
class Counts:
    """Yes-or-no answers against their labels, as POPE counts them (Li et al. 2023).

    A missing answer is a wrong one, so that no score improves by it.

    Attributes:
        tp, fp, tn, fn: true and false, positives ("yes") and negatives.
        silent: those of ``fp`` that are missing answers.
    """

    tp: int = 0
    fp: int = 0
    tn: int = 0
    fn: int = 0
    silent: int = 0

    @classmethod
    @checked
    def of(cls, answers: Iterable[tuple[YesNo | None, YesNo]]) -> Counts:
        """Count pairs of an answer (None: there is none) and its label."""
        found = Counter(members("answers", answers, tuple[YesNo | None, YesNo]))
        silent = found[None, "no"]
        return cls(
            tp=found["yes", "yes"],
            fp=found["yes", "no"] + silent,
            tn=found["no", "no"],
            fn=found["no", "yes"] + found[None, "yes"],
            silent=silent,
        )

    @property
    def total(self) -> int:
        """All questions."""
        return self.tp + self.fp + self.tn + self.fn

    @property
    def said_yes(self) -> int:
        """Answers that say "yes"."""
        return self.tp + self.fp - self.silent

    @property
    def accuracy(self) -> float | None:
        """The share of right answers; None, like all shares here, where nothing can be counted."""
        return _share(self.tp + self.tn, self.total)

    @property
    def precision(self) -> float | None:
        """The share of right answers among those that say "yes", or fail to say "no"."""
        return _share(self.tp, self.tp + self.fp)

    @property
    def recall(self) -> float | None:
        """The share of "yes" among the questions whose label is "yes"."""
        return _share(self.tp, self.tp + self.fn)

    @property
    def f1(self) -> float | None:
        """The harmonic mean of precision and recall."""
        return _share(2 * self.tp, 2 * self.tp + self.fp + self.fn)

    @property
    def yes_ratio(self) -> float | None:
        """The share of answers that say "yes"."""
        return _share(self.said_yes, self.total)


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
