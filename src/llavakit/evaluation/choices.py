"""Benchmarks of multiple choice: MMBench, SEED-Bench and ScienceQA."""

from __future__ import annotations

import csv
import io
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

from llavakit.errors import InputError, UnsupportedContentError
from llavakit.evaluation.answers import LETTERS, science_answer
from llavakit.evaluation.benchmark import LETTER, Benchmark, BenchmarkAnswer, question_of
from llavakit.evaluation.data import (
    Data,
    DataLine,
    Question,
    entries,
    keyed,
    picture_in,
    read,
    read_json,
    read_lines,
)
from llavakit.evaluation.scores import Score, share
from llavakit.evaluation.workbook import workbook

_MISSING = frozenset((
    "", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN",
    "<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null",
))  # fmt: skip
"""Texts that pandas, and so the original's script, reads as a missing value."""

_FIELD = 2**27  # letters of the largest cell: base64 of an image of 96 MiB


class MMBench(Benchmark):
    """MMBench (Liu et al. 2023): one table with images in it, for the benchmark's server.

    Where the table has answers, the share of right letters is reported too. That is not the
    server's score, which asks every question several times with its choices rotated.
    """

    name = "mmbench"
    title = "MMBench"
    question_files: ClassVar[tuple[str, ...]] = (
        "mmbench_dev_20230712.tsv",
        "mmbench_dev_en_20231003.tsv",
        "mmbench_test_en_20231003.tsv",
    )
    max_tokens = 1024
    elsewhere = "MMBench's server"
    asks = LETTER

    def read(self) -> list[Question]:
        path = self.data.question_file(*self.question_files)
        self.columns, self.rows = _table(path)
        for needed in ("index", "question", "A", "B", "image"):
            if needed not in self.columns:
                raise InputError(
                    f"{path} has no column {needed!r}; take the benchmark's own table."
                )
        return [self._question(number, row, path) for number, row in enumerate(self.rows)]

    def _question(self, number: int, row: dict[str, str], path: Path) -> Question:
        prompt = row["question"]
        if not _is_missing(row.get("hint", "")):
            prompt = f"{row['hint']}\n{prompt}"
        for letter in LETTERS[:4]:
            if _is_missing(row.get(letter, "")):
                break
            prompt += f"\n{letter}. {row[letter]}"
        index = row["index"]
        identity: str | int = int(index) if index.isascii() and index.isdigit() else index
        error = None
        if _is_missing(row["image"]):
            error = InputError(f"{path} has no image for question {index}.")
        return Question(
            number,
            identity,
            f"{prompt}\n{self.asks}",
            row["image"],
            row.get("category", ""),
            row,
            error,
        )

    def scores(self, answers: Sequence[BenchmarkAnswer]) -> list[Score]:
        if "answer" not in self.columns or all(_is_missing(row["answer"]) for row in self.rows):
            return []
        correct = sum(
            one.error is None and one.text == one.question.record["answer"] for one in answers
        )
        return [share("right letters, asked once", correct, len(answers))]

    def files(self, answers: Sequence[BenchmarkAnswer]) -> dict[str, bytes]:
        dropped = ("hint", "category", "source", "image", "comment", "l2-category")
        kept = [name for name in self.columns if name not in dropped]
        place = min(6, len(kept))
        texts = {one.question.number: one.text for one in answers if one.error is None}
        table: list[list[str | int]] = [[*kept[:place], "prediction", *kept[place:]]]
        for question in self.questions:
            row = ["" if _is_missing(question.record[n]) else question.record[n] for n in kept]
            said = texts.get(question.number, "")
            table.append([_cell(value) for value in [*row[:place], said, *row[place:]]])
        return {"upload.xlsx": workbook(table)}


class MMBenchCN(MMBench):
    """MMBench in Chinese."""

    name = "mmbench-cn"
    title = "MMBench-CN"
    question_files = ("mmbench_dev_cn_20231003.tsv", "mmbench_test_cn_20231003.tsv")
    asks = "请直接回答选项字母。"


def _is_missing(value: str) -> bool:
    return value in _MISSING or value.lower() in ("nan", "none")


def _cell(value: str) -> str | int:
    """A cell's value: numbers as numbers, as a spreadsheet of pandas has them."""
    return int(value) if value.isascii() and value.isdigit() and value == str(int(value)) else value


def _table(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Read a file of values between tabs: the names of its columns, and its rows."""
    try:
        text = read(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text; get the file anew.") from error
    before = csv.field_size_limit(max(_FIELD, csv.field_size_limit()))
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter="\t")
        columns = next(reader, [])
        rows = []
        for row in reader:
            if len(row) != len(columns):
                raise InputError(
                    f"{path}, line {reader.line_num}: there are {len(row)} values for "
                    f"{len(columns)} columns."
                )
            rows.append(dict(zip(columns, row, strict=True)))
    except csv.Error as error:
        raise InputError(
            f"{path}, line {reader.line_num}: this is not a table ({error})."
        ) from error
    finally:
        csv.field_size_limit(before)
    if not rows:
        raise InputError(f"{path} holds no questions; take the benchmark's own file.")
    return columns, rows


class SeedBench(Benchmark):
    """SEED-Bench (Li et al. 2023): images, and the middle frames of videos as images."""

    name = "seed"
    title = "SEED-Bench"
    question_files = ("llava-seed-bench.jsonl",)
    annotation = "SEED-Bench.json"

    def __init__(self, data: Data) -> None:
        super().__init__(data)
        path = data.annotation_file(self.annotation)
        value = read_json(path)
        if not isinstance(value, dict) or not {"questions", "question_type"} <= value.keys():
            raise InputError(f"{path} must be an object with 'questions' and 'question_type'.")
        self.types = {number: name for name, number in value["question_type"].items()}
        known = keyed(
            entries(path, value["questions"], "question"), lambda line: str(line.id("question_id"))
        )
        self.truth: list[DataLine] = []
        for question in self.questions:
            if str(question.id) not in known:
                raise InputError(
                    f"{path} has no question {question.id!r}; it must be of the same split."
                )
            self.truth.append(known[str(question.id)])
        self.wanted = [line.text("answer") for line in self.truth]

    def read(self) -> list[Question]:
        folder = self.data.image_folder(self.images)
        lines = read_lines(self.data.question_file(*self.question_files))
        return [_no_video(question_of(line, number, folder)) for number, line in enumerate(lines)]

    def scores(self, answers: Sequence[BenchmarkAnswer]) -> list[Score]:
        groups: dict[str, list[bool]] = defaultdict(list)
        for answer in answers:
            line = self.truth[answer.question.number]
            correct = answer.error is None and answer.text == self.wanted[answer.question.number]
            kind = line.record.get("question_type_id")
            for name in ("all", line.record.get("data_type", "image"), self.types.get(kind, kind)):
                groups[f"accuracy, {name}"].append(correct)
        return [share(name, sum(rights), len(rights)) for name, rights in groups.items()]

    def files(self, answers: Sequence[BenchmarkAnswer]) -> dict[str, bytes]:
        rows = [
            {
                "question_id": self.truth[one.question.number].record["question_id"],
                "prediction": one.text,
            }
            for one in answers
        ]
        return {"upload.jsonl": "".join(json.dumps(row) + "\n" for row in rows).encode()}


_VIDEOS = (".mp4", ".webm", ".avi", ".mkv", ".mov", ".mpg", ".mpeg")


def _no_video(question: Question) -> Question:
    name = str(question.record["image"])
    if PurePosixPath(name).suffix.lower() not in _VIDEOS:
        return question
    error = UnsupportedContentError(
        "this is a video, and LLaVA looks at images; take its middle frame out, as the original "
        "did, and name that image in the question file."
    )
    return Question(
        question.number, question.id, question.prompt, question.image, question.category,
        question.record, error,
    )  # fmt: skip


class ScienceQA(Benchmark):
    """ScienceQA (Lu et al. 2022), the test split; some of its questions have no image."""

    name = "scienceqa"
    title = "ScienceQA"
    question_files = ("llava_test_CQM-A.json",)
    images = "images/test"
    annotation = "problems.json"
    max_tokens = 1024

    def __init__(self, data: Data) -> None:
        super().__init__(data)
        path = data.annotation_file(self.annotation)
        value = read_json(path)
        lines = entries(path, value, "problem")
        known = dict(zip(value, lines, strict=True)) if isinstance(value, dict) else {}
        self.problems: list[tuple[int, int]] = []
        for question in self.questions:
            if str(question.id) not in known:
                raise InputError(
                    f"{path} has no problem {question.id!r}; it must be of the same split."
                )
            line = known[str(question.id)]
            self.problems.append((line.index("answer"), len(line.texts("choices"))))

    def read(self) -> list[Question]:
        path = self.data.question_file(*self.question_files)
        folder = self.data.image_folder(self.images)
        lines = entries(path, read_json(path), "question")
        if not lines:
            raise InputError(f"{path} holds no questions; take the benchmark's own file.")
        return [_science_question(number, line, folder) for number, line in enumerate(lines)]

    def scores(self, answers: Sequence[BenchmarkAnswer]) -> list[Score]:
        rights = [self._is_right(one) for one in answers]
        seen = [
            good
            for good, one in zip(rights, answers, strict=True)
            if one.question.image is not None
        ]
        return [
            share("accuracy", sum(rights), len(rights)),
            share("accuracy, with an image", sum(seen), len(seen)),
        ]

    def _is_right(self, answer: BenchmarkAnswer) -> bool:
        wanted, choices = self.problems[answer.question.number]
        return answer.error is None and science_answer(answer.text, choices) == wanted


def _science_question(number: int, line: DataLine, folder: Path) -> Question:
    turns: Any = line.record.get("conversations")
    if not (isinstance(turns, list) and turns and isinstance(turns[0], dict)):
        raise line.wrong("'conversations' must be a list of turns")
    value = turns[0].get("value")
    if not isinstance(value, str):
        raise line.wrong("the first turn has no text under 'value'")
    prompt = f"{value.replace('<image>', '').strip()}\n{LETTER}"
    picture, error = None, None
    if "image" in line.record:
        try:
            picture = picture_in(folder, line.text("image"))
        except InputError as problem:
            error = problem
    return Question(number, line.id("id"), prompt, picture, "", line.record, error)
