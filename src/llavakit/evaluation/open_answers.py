"""Benchmarks of short free answers: VQAv2, VizWiz, TextVQA, GQA and DocVQA."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from llavakit.errors import InputError
from llavakit.evaluation.answers import gqa_answer, textvqa_question, vqa_answer
from llavakit.evaluation.benchmark import SHORT, Benchmark, BenchmarkAnswer
from llavakit.evaluation.data import (
    Data,
    DataLine,
    Question,
    entries,
    keyed,
    picture_in,
    read_json,
    read_lines,
)
from llavakit.evaluation.metrics import anls, vqa_accuracy
from llavakit.evaluation.scores import Score, mean, share


class _AnsweredByPeople(Benchmark):
    """Scored by the answers of ten people, where these are known."""

    def __init__(self, data: Data) -> None:
        super().__init__(data)
        self.kinds: dict[int, str] = {}
        self.people = self.read_people()

    @abstractmethod
    def read_people(self) -> list[list[str]] | None:
        """People's answers to each question, or None where they are not public."""

    def scores(self, answers: Sequence[BenchmarkAnswer]) -> list[Score]:
        if self.people is None:
            return []
        worth = [_accuracy(answer, self.people[answer.question.number]) for answer in answers]
        found = [mean("accuracy", worth)]
        kinds = [self.kinds.get(answer.question.number, "") for answer in answers]
        for kind in sorted(set(kinds) - {""}):
            of_kind = [one for one, its in zip(worth, kinds, strict=True) if its == kind]
            found.append(mean(f"accuracy, {kind}", of_kind))
        return found


def _accuracy(answer: BenchmarkAnswer, people: Sequence[str]) -> float:
    return 0.0 if answer.error is not None else vqa_accuracy(answer.text, people)


class VQAv2(_AnsweredByPeople):
    """VQA v2 (Goyal et al. 2017): test questions for the server, or validation scored here."""

    name = "vqav2"
    title = "VQAv2"
    question_files = (
        "llava_vqav2_mscoco_test-dev2015.jsonl",
        "llava_vqav2_mscoco_test2015.jsonl",
    )
    images = "test2015"
    elsewhere = "the VQA challenge's server on EvalAI"
    whole = "llava_vqav2_mscoco_test2015.jsonl"

    def read_people(self) -> list[list[str]] | None:
        self.everything = self._everything()
        if self.data.annotations is None:
            return None
        path = self.data.annotation_file()
        known = keyed(
            entries(path, _member(path, "annotations"), "annotation"),
            lambda line: line.id("question_id"),
        )
        lines = [_found(known, question.id, path, question) for question in self.questions]
        self.kinds = _kinds(lines)
        return [line.texts("answers", of="answer") for line in lines]

    def _everything(self) -> list[str | int]:
        """Ids of the whole test split, which the server wants even for test-dev."""
        path = self.data.folder / self.whole
        if self.data.questions is not None or not path.exists():
            return [question.id for question in self.questions]
        return [line.id("question_id") for line in read_lines(path)]

    def files(self, answers: Sequence[BenchmarkAnswer]) -> dict[str, bytes]:
        given = {answer.question.id: vqa_answer(answer.text) for answer in answers}
        rows = [{"question_id": one, "answer": given.get(one, "")} for one in self.everything]
        return {"upload.json": to_json(rows)}


class VizWiz(_AnsweredByPeople):
    """VizWiz (Gurari et al. 2018), images by blind people; test, or validation scored here."""

    name = "vizwiz"
    title = "VizWiz"
    question_files = ("llava_test.jsonl",)
    images = "test"
    elsewhere = "the VizWiz challenge's server on EvalAI"

    def read_people(self) -> list[list[str]] | None:
        if self.data.annotations is None:
            return None
        path = self.data.annotation_file()
        known = keyed(entries(path, read_json(path), "annotation"), lambda line: line.text("image"))
        lines = [
            _found(known, question.record["image"], path, question) for question in self.questions
        ]
        self.kinds = _kinds(lines)
        return [line.texts("answers", of="answer") for line in lines]

    def files(self, answers: Sequence[BenchmarkAnswer]) -> dict[str, bytes]:
        given = {answer.question.number: vqa_answer(answer.text) for answer in answers}
        rows = [
            {"image": question.record["image"], "answer": given.get(question.number, "")}
            for question in self.questions
        ]
        return {"upload.json": to_json(rows)}


class TextVQA(_AnsweredByPeople):
    """TextVQA (Singh et al. 2019), with the OCR tokens that the question file brings."""

    name = "textvqa"
    title = "TextVQA"
    question_files = ("llava_textvqa_val_v051_ocr.jsonl",)
    images = "train_images"
    annotation = "TextVQA_0.5.1_val.json"

    def read_people(self) -> list[list[str]]:
        path = self.data.annotation_file(self.annotation)
        # A question that occurs twice has the answers of its last place, as in the original.
        known = {
            (str(line.id("image_id")), line.text("question").lower()): line
            for line in entries(path, _member(path, "data"), "question")
        }
        found = []
        for question in self.questions:
            try:
                asked = textvqa_question(question.prompt)
            except InputError as error:
                raise InputError(f"The prompt of question {question.id!r}: {error}") from error
            line = _found(known, (str(question.id), asked), path, question)
            found.append(line.texts("answers"))
        return found


class GQA(Benchmark):
    """GQA (Hudson and Manning 2019), the balanced test-dev split."""

    name = "gqa"
    title = "GQA"
    question_files = ("llava_gqa_testdev_balanced.jsonl",)
    images = "data/images"
    annotation = tuple(
        f"data/{folder}testdev_balanced_questions.json"
        for folder in ("", "questions1.2/", "questions/")
    )
    elsewhere = "GQA's own eval.py, which adds more measures than accuracy"

    def __init__(self, data: Data) -> None:
        super().__init__(data)
        self.wanted = self._wanted() if data.has_annotations(*self.annotation) else None

    def _wanted(self) -> list[str]:
        path = self.data.annotation_file(*self.annotation)
        value = read_json(path)
        lines = entries(path, value, "question")
        if not isinstance(value, dict):
            raise InputError(f"{path} must be an object with a question under each id.")
        known = dict(zip(value, lines, strict=True))
        return [
            _found(known, str(question.id), path, question).text("answer")
            for question in self.questions
        ]

    def scores(self, answers: Sequence[BenchmarkAnswer]) -> list[Score]:
        if self.wanted is None:
            return []
        correct = sum(
            answer.error is None
            and gqa_answer(answer.text) == self.wanted[answer.question.number].lower()
            for answer in answers
        )
        return [share("accuracy", correct, len(answers))]

    def files(self, answers: Sequence[BenchmarkAnswer]) -> dict[str, bytes]:
        rows = [
            {"questionId": answer.question.id, "prediction": gqa_answer(answer.text)}
            for answer in answers
        ]
        return {"testdev_balanced_predictions.json": to_json(rows)}


class DocVQA(Benchmark):
    """DocVQA (Mathew et al. 2021), the official files; LLaVA's prompt for short answers."""

    name = "docvqa"
    title = "DocVQA"
    question_files = ("val_v1.0_withQT.json", "val_v1.0.json", "test_v1.0.json")
    elsewhere = "the server of the Robust Reading Competition, for the test split"

    def read(self) -> list[Question]:
        path = self.data.question_file(*self.question_files)
        self.accepted: list[list[str]] | None = []
        found = []
        for number, line in enumerate(entries(path, _member(path, "data"), "question")):
            prompt = f"{line.text('question')}\n{SHORT}"
            picture = self._picture(line)
            identity = line.id("questionId")
            found.append(Question(number, identity, prompt, picture, record=line.record))
            if "answers" not in line.record:
                self.accepted = None
            elif self.accepted is not None:
                self.accepted.append(line.texts("answers"))
        if not found:
            raise InputError(f"{path} holds no questions; take the benchmark's own file.")
        return found

    def _picture(self, line: DataLine) -> Any:
        name = line.text("image")
        newer = self.data.folder / "spdocvqa_images"
        if self.data.images is None and newer.is_dir():
            return picture_in(newer, name.rpartition("/")[2])
        return picture_in(self.data.image_folder(), name)

    def scores(self, answers: Sequence[BenchmarkAnswer]) -> list[Score]:
        if self.accepted is None:
            return []
        accepted = self.accepted
        return [
            mean(
                "ANLS",
                [
                    0.0 if one.error is not None else anls(one.text, accepted[one.question.number])
                    for one in answers
                ],
            )
        ]

    def files(self, answers: Sequence[BenchmarkAnswer]) -> dict[str, bytes]:
        rows = [{"questionId": one.question.id, "answer": one.text} for one in answers]
        return {"upload.json": to_json(rows)}


def _kinds(lines: Sequence[DataLine]) -> dict[int, str]:
    """The answer types of questions (number, yes/no, other), by number, where they are known."""
    return {
        number: line.text("answer_type")
        for number, line in enumerate(lines)
        if "answer_type" in line.record
    }


def to_json(value: Any) -> bytes:
    """Serialise a result file as the original's scripts write it."""
    return json.dumps(value).encode()


def _member(path: Any, key: str) -> Any:
    value = read_json(path)
    if not isinstance(value, dict) or key not in value:
        raise InputError(f"{path} must be an object with {key!r}.")
    return value[key]


def _found(known: dict[Any, DataLine], key: Any, path: Any, question: Question) -> DataLine:
    if key not in known:
        raise InputError(
            f"{path} has no question {question.id!r}; the annotations must be those of the "
            "question file."
        )
    return known[key]
