"""The interface of all benchmarks: questions, scores, and files for other scorers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from llavakit.errors import InputError
from llavakit.evaluation.data import Data, DataLine, Question, picture_in, read_lines
from llavakit.evaluation.scores import Score

SHORT = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."


@dataclass(frozen=True, slots=True)
class BenchmarkAnswer:
    """A model's answer to a question.

    Attributes:
        question: the question.
        text: the answer without white space around it; empty where there is none.
        error: why there is no answer.
        finish_reason: ``"stop"``, or ``"length"`` where the answer was cut.
    """

    question: Question
    text: str
    error: str | None = None
    finish_reason: str | None = None


class Benchmark(ABC):
    """A benchmark, read from its files.

    Args:
        data: where the files are.

    Attributes:
        questions: all of them, in the order of the question file.

    Raises:
        InputError: a file is missing or damaged; the message names it and the line.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    question_files: ClassVar[tuple[str, ...]]
    images: ClassVar[str] = "."
    max_tokens: ClassVar[int] = 128
    """The longest answer, as in the original's script for this benchmark."""
    elsewhere: ClassVar[str] = ""
    """Where the files of :meth:`files` are scored, in words."""

    def __init__(self, data: Data) -> None:
        self.data = data
        self.questions = self.read()

    def read(self) -> list[Question]:
        """Read the questions; by default a file of JSON Lines with question_id, image and text."""
        folder = self.data.image_folder(self.images)
        lines = read_lines(self.data.question_file(*self.question_files))
        return [question_of(line, number, folder) for number, line in enumerate(lines)]

    @abstractmethod
    def scores(self, answers: Sequence[BenchmarkAnswer]) -> list[Score]:
        """Compute the figures; a question without an answer counts as answered wrongly."""

    def files(self, answers: Sequence[BenchmarkAnswer]) -> dict[str, bytes]:
        """Return files in the form that the benchmark's own scoring takes, by name."""
        return {}


def question_of(line: DataLine, number: int, folder: Path) -> Question:
    """Return a question from a line of the original's question files."""
    name = line.text("image")
    category = line.text("category") if "category" in line.record else ""
    prompt, identity = line.text("text"), line.id("question_id")
    try:
        picture, error = picture_in(folder, name), None
    except InputError as problem:
        picture, error = folder, problem
    return Question(number, identity, prompt, picture, category, line.record, error)
