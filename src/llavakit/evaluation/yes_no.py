"""Benchmarks of yes-or-no questions: POPE and MME."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from llavakit.errors import InputError, SourceNotFoundError
from llavakit.evaluation.answers import YesNo, mme_answer, pope_answer
from llavakit.evaluation.benchmark import SHORT, Benchmark, BenchmarkAnswer
from llavakit.evaluation.data import Data, DataLine, Question, read, read_lines
from llavakit.evaluation.metrics import Counts
from llavakit.evaluation.scores import Score, f1, share, sum_of_means


class Pope(Benchmark):
    """POPE (Li et al. 2023): does a model see objects that are not there?"""

    name = "pope"
    title = "POPE"
    question_files = ("llava_pope_test.jsonl",)
    images = "val2014"
    annotation = "coco"

    def __init__(self, data: Data) -> None:
        super().__init__(data)
        folder = data.annotation_file(self.annotation)
        labels = {name: _labels(folder, name) for name in self._categories()}
        upcoming = {name: iter(lines) for name, lines in labels.items()}
        self.labels = [self._label(question, upcoming, folder) for question in self.questions]

    def _categories(self) -> list[str]:
        unnamed = [question.id for question in self.questions if not question.category]
        if unnamed:
            raise InputError(f"Question {unnamed[0]!r} of POPE has no 'category'.")
        return list(dict.fromkeys(question.category for question in self.questions))

    def _label(
        self, question: Question, upcoming: dict[str, Iterator[DataLine]], folder: Path
    ) -> YesNo:
        """Return the next label of the category: labels are in the order of its questions."""
        path = _label_file(folder, question.category)
        line = next(upcoming[question.category], None)
        if line is None:
            raise InputError(
                f"{path} has no label for question {question.id!r}; take the benchmark's own file."
            )
        pictures = [Path(one.text("image")).name for one in (line,) if "image" in one.record]
        if pictures and pictures != [Path(str(question.record["image"])).name]:
            raise line.wrong(
                f"its image is not that of question {question.id!r}, so the labels are not in "
                "the order of the questions"
            )
        label = line.text("label")
        if label not in ("yes", "no"):
            raise line.wrong(f"the label is {label!r} and must be yes or no")
        return "yes" if label == "yes" else "no"

    def scores(self, answers: Sequence[BenchmarkAnswer]) -> list[Score]:
        groups: dict[str, list[tuple[YesNo | None, YesNo]]] = defaultdict(list)
        for answer in answers:
            given = None if answer.error is not None else pope_answer(answer.text)
            label = self.labels[answer.question.number]
            groups[answer.question.category].append((given, label))
        counted = {name: Counts.of(pairs) for name, pairs in groups.items()}
        found = [f1("F1, mean of categories", list(counted.values()))]
        for name, counts in counted.items():
            found += [
                share(f"{name}: accuracy", counts.tp + counts.tn, counts.total),
                share(f"{name}: precision", counts.tp, counts.tp + counts.fp),
                share(f"{name}: recall", counts.tp, counts.tp + counts.fn),
                f1(f"{name}: F1", [counts]),
                share(f"{name}: yes ratio", counts.said_yes, counts.total),
            ]
        return found


def _label_file(folder: Path, category: str) -> Path:
    return folder / f"coco_pope_{category}.json"


def _labels(folder: Path, category: str) -> list[DataLine]:
    return read_lines(_label_file(folder, category))


_PERCEPTION = (
    "existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark",
    "artwork", "OCR",
)  # fmt: skip
_COGNITION = (
    "commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning"
)  # fmt: skip
_ASKS_FOR_YES_OR_NO = "Please answer yes or no."


class MME(Benchmark):
    """MME (Fu et al. 2023): two questions about each image, and points for having both right."""

    name = "mme"
    title = "MME"
    question_files = ("llava_mme.jsonl",)
    images = "MME_Benchmark_release_version"

    def __init__(self, data: Data) -> None:
        super().__init__(data)
        self.truth: dict[tuple[str, str], dict[str, YesNo]] = {}
        root = data.annotations or data.folder / self.images
        self.wanted = [self._wanted(question, root) for question in self.questions]

    def _wanted(self, question: Question, root: Path) -> YesNo:
        category, stem = _place(question)
        truth = self.truth.get((category, stem))
        if truth is None:
            truth = self.truth[category, stem] = _read_truth(root, category, stem)
        wanted = truth.get(_plain(question.prompt))
        if wanted is None:
            raise InputError(
                f"MME's annotations of {category}/{stem} do not have the question of "
                f"{question.id!r}."
            )
        return wanted

    def scores(self, answers: Sequence[BenchmarkAnswer]) -> list[Score]:
        pictures: dict[str, dict[str, dict[str, bool]]] = defaultdict(lambda: defaultdict(dict))
        for answer in answers:
            category, stem = _place(answer.question)
            said = None if answer.error is not None else mme_answer(answer.text)
            # A question that occurs twice in the file counts once, as in the original's script.
            pictures[category][stem].setdefault(
                _plain(answer.question.prompt), said == self.wanted[answer.question.number]
            )
        points = {
            category: [
                100 * (sum(rights.values()) / len(rights) + self._both(category, stem, rights))
                for stem, rights in of_category.items()
            ]
            for category, of_category in pictures.items()
        }
        found = [
            sum_of_means(name, [points[one] for one in of_sum if one in points])
            for name, of_sum in (("perception", _PERCEPTION), ("cognition", _COGNITION))
        ]
        return found + [sum_of_means(name, [values]) for name, values in points.items()]

    def _both(self, category: str, stem: str, rights: dict[str, bool]) -> bool:
        return all(rights.values()) and len(rights) == len(self.truth[category, stem])

    def files(self, answers: Sequence[BenchmarkAnswer]) -> dict[str, bytes]:
        rows: dict[str, dict[str, str]] = defaultdict(dict)
        for answer in answers:
            category, stem = _place(answer.question)
            question = f"{_plain(answer.question.prompt)} {_ASKS_FOR_YES_OR_NO}"
            wanted = self.wanted[answer.question.number].capitalize()
            said = " ".join(answer.text.split())
            key = f"{stem}.txt\t{question}\t{wanted}"
            rows[category].setdefault(key, f"{key}\t{said}\n")
        return {
            f"results/{category}.txt": "".join(lines.values()).encode()
            for category, lines in rows.items()
        }


def _place(question: Question) -> tuple[str, str]:
    parts = str(question.id).split("/")
    if len(parts) < 2 or ".." in parts:
        raise InputError(
            f"MME's question {question.id!r} must be named by category and image, such as "
            "existence/0001.jpg."
        )
    return parts[0], parts[-1].split(".")[0]


def _plain(prompt: str) -> str:
    """A question without the passage that asks for the form of the answer."""
    return " ".join(prompt.replace(SHORT, "").replace(_ASKS_FOR_YES_OR_NO, "").split())


def _read_truth(root: Path, category: str, stem: str) -> dict[str, YesNo]:
    places = [root / category / "questions_answers_YN", root / category]
    path = next((one / f"{stem}.txt" for one in places if (one / f"{stem}.txt").exists()), None)
    if path is None:
        raise SourceNotFoundError(
            f"MME's annotations are missing: there is no {places[0] / stem}.txt; put it there."
        )
    found: dict[str, YesNo] = {}
    for number, line in enumerate(read(path).decode("utf-8", "replace").splitlines(), 1):
        if not line.strip():
            continue
        question, _, answer = line.strip().rpartition("\t")
        if answer not in ("Yes", "No") or not question:
            raise InputError(
                f"{path}, line {number}: this must be a question, a tab, and Yes or No."
            )
        found[_plain(question)] = "yes" if answer == "Yes" else "no"
    return found
