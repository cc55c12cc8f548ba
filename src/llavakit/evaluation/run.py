"""Asking all questions of a benchmark, and the results.

The answers are JSON Lines, ``answers.jsonl``, in the form of LLaVA's own answer files. A run may
be killed at any time; the next one asks what has no answer yet, and ends with the same scores.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llavakit._checks import check_integer, checked, plain
from llavakit.backend import Backend
from llavakit.documents.reading import Model
from llavakit.errors import LlavaKitError, ParameterError, SourceFetchError
from llavakit.evaluation.benchmark import Benchmark, BenchmarkAnswer
from llavakit.evaluation.data import Question
from llavakit.evaluation.scores import Score
from llavakit.runs.atomic import write_atomic
from llavakit.runs.claim import claim
from llavakit.runs.lines import Lines
from llavakit.runs.window import Asking, in_order
from llavakit.values import Completion, SamplingParams

_FORMAT = 1
_KEYS = ("number", "question_id", "text", "error")


@dataclass(frozen=True, slots=True)
class RunProgress:
    """How far a run is.

    Attributes:
        done: questions that have an answer or an error.
        total: questions to ask.
        errors: those that have an error.
        error: the error of the last question, if it had one.
    """

    done: int
    total: int
    errors: int
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Results:
    """The outcome of a benchmark.

    Attributes:
        benchmark: its name.
        title: its name in tables.
        model: the name of the model.
        revision: the revision of its weights, where known.
        questions: how many were asked.
        of: how many there are.
        errors: questions that could not be answered; they count as answered wrongly.
        cut: answers that ended because they were too long.
        scores: the figures.
        elsewhere: where the files are scored, if not here.
        files: names of the files that were written, beside ``answers.jsonl``.
    """

    benchmark: str
    title: str
    model: str
    revision: str
    questions: int
    of: int
    errors: int
    cut: int
    scores: tuple[Score, ...]
    elsewhere: str
    files: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the results as they stand in ``results.json``."""
        return asdict(self)


@checked
def evaluate(
    benchmark: Benchmark,
    backend: Model,
    out: Path,
    *,
    model: str,
    limit: int | None = None,
    max_tokens: int | None = None,
    restart: bool = False,
    retry_errors: bool = False,
    window: int | None = None,
    settings: Mapping[str, Any] | None = None,
    progress: Callable[[RunProgress], None] = lambda progress: None,
) -> Results:
    """Ask the questions of a benchmark, greedily, and score the answers.

    Args:
        benchmark: the benchmark.
        backend: the model.
        out: the folder of results; made if it is not there. An earlier run's answers in it are
            kept.
        model: the name that stands in the results.
        limit: ask only the first questions, as many as this.
        max_tokens: the longest answer; None takes the benchmark's own.
        restart: begin anew, whatever is there.
        retry_errors: ask again what had an error in an earlier run.
        window: most requests under way; None is twice what the model runs at once,
            and at least 64.
        settings: all else that the answers depend on, such as a conversation template.
        progress: called at the beginning, and after each question.

    Raises:
        ParameterError: the folder's answers belong to another run, or another run writes them.
        SourceFetchError: the results cannot be written.
        EngineError, RemoteError, ModelError: the model failed; the same call resumes the run.
    """
    plain("settings", settings)
    if limit is not None:
        check_integer("limit", limit, least=1)
    questions = benchmark.questions[:limit]
    params = SamplingParams(max_tokens or benchmark.max_tokens, temperature=0.0)
    job = _job(benchmark, backend, model, params, settings or {})
    make_folder(out)
    with Lines(out / "answers.jsonl", _KEYS, restart=restart) as lines:
        claim(lines, job)
        given = _earlier(lines, benchmark.questions, retry_errors)
        missing = [question for question in questions if question.number not in given]
        known = [given[one.number] for one in questions if one.number in given]
        done, errors = len(known), sum(answer.error is not None for answer in known)
        progress(RunProgress(done, len(questions), errors))
        with closing(_ask(backend, missing, params, window)) as outcomes:
            for question, outcome in zip(missing, outcomes, strict=True):
                line = _line(question, outcome, model)
                lines.append(line)
                answer = given[question.number] = _answer(question, line)
                done += 1
                errors += answer.error is not None
                progress(RunProgress(done, len(questions), errors, answer.error))
    return _finish(benchmark, [given[one.number] for one in questions], backend, model, out)


def _ask(
    backend: Backend, questions: Sequence[Question], params: SamplingParams, window: int | None
) -> Generator[Completion | LlavaKitError, None, None]:
    asked = (Asking(question.messages(), params, question.error) for question in questions)
    return in_order(backend, asked, window)


def _job(
    benchmark: Benchmark,
    backend: Backend,
    model: str,
    params: SamplingParams,
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """All that answers depend on; not the annotations, for scores are computed anew each time."""
    digest = hashlib.sha256()
    for question in benchmark.questions:
        image = None if question.image is None else str(question.record.get("image"))
        digest.update(json.dumps([question.id, question.prompt, image]).encode())
    return {
        "format": _FORMAT,
        "benchmark": benchmark.name,
        "model": model,
        "revision": backend.info.revision,
        "max_tokens": params.max_tokens,
        "settings": dict(settings),
        "questions": len(benchmark.questions),
        "sha256 of the questions": digest.hexdigest(),
    }


def _earlier(
    lines: Lines, questions: Sequence[Question], retry_errors: bool
) -> dict[int, BenchmarkAnswer]:
    """Read the answers of earlier runs by the question's number; of two, the later one counts."""
    found: dict[int, BenchmarkAnswer] = {}
    for at, line in enumerate(lines.read(), 1):
        number = line["number"]
        known = isinstance(number, int) and 0 <= number < len(questions)
        if not known or questions[number].id != line["question_id"]:
            raise ParameterError(
                f"Line {at} of {lines.path} is not of this benchmark; name another folder, or "
                "begin anew with restart (--restart)."
            )
        if _other_picture(questions[number], line):
            raise ParameterError(
                f"{_named(questions[number])} was answered about another image than the one "
                "that is there now; name another folder of results, or begin anew with restart "
                "(--restart)."
            )
        found[number] = _answer(questions[number], line)
    if retry_errors:
        return {number: answer for number, answer in found.items() if answer.error is None}
    return found


def _line(question: Question, outcome: Completion | LlavaKitError, model: str) -> dict[str, Any]:
    """An answer's line on disk: the fields that the original's scripts read, and some more."""
    line: dict[str, Any] = {
        "number": question.number,
        "question_id": question.id,
        "prompt": question.prompt,
        "text": "",
        "model_id": model,
        "image_bytes": _size(question),
        "finish_reason": None,
        "error": None,
    }
    if isinstance(outcome, Completion):
        return {**line, "text": outcome.text.strip(), "finish_reason": outcome.finish_reason}
    message = " ".join(str(outcome).split())
    text = f"{_named(question)}: {message}"
    return {**line, "error": {"type": type(outcome).__name__, "message": text}}


def _size(question: Question) -> int | None:
    """The bytes of a question's image, where it is a file that is there."""
    try:
        return question.image.stat().st_size if isinstance(question.image, Path) else None
    except OSError:
        return None


def _other_picture(question: Question, line: Mapping[str, Any]) -> bool:
    # Names of images are alike in all folders (COCO's images, resized or not); their sizes
    # differ, and cost only a stat. Without the images, scoring anew is allowed.
    then, now = line.get("image_bytes"), _size(question)
    return then is not None and now is not None and then != now


def _named(question: Question) -> str:
    """A question's name in errors; paths are cut there, so the image's name is added."""
    name = question.record.get("image") if isinstance(question.image, Path) else None
    return f"Question {question.id}" + (f" ({name})" if name else "")


def _answer(question: Question, line: Mapping[str, Any]) -> BenchmarkAnswer:
    error = line["error"] and str(line["error"].get("message"))
    return BenchmarkAnswer(question, str(line["text"]), error, line.get("finish_reason"))


def _finish(
    benchmark: Benchmark,
    answers: Sequence[BenchmarkAnswer],
    backend: Backend,
    model: str,
    out: Path,
) -> Results:
    """Score the answers, and write all files but the answers themselves."""
    files = benchmark.files(answers)
    for name, data in files.items():
        make_folder((out / name).parent)
        write_atomic(out / name, data)
    results = Results(
        benchmark.name,
        benchmark.title,
        model,
        backend.info.revision,
        len(answers),
        len(benchmark.questions),
        sum(answer.error is not None for answer in answers),
        sum(answer.finish_reason == "length" for answer in answers),
        tuple(benchmark.scores(answers)),
        benchmark.elsewhere,
        tuple(files),
    )
    text = json.dumps(results.to_dict(), indent=1, ensure_ascii=False) + "\n"
    write_atomic(out / "results.json", text.encode())
    return results


def make_folder(folder: Path) -> None:
    """Make a folder of results, with those above it.

    Raises:
        SourceFetchError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SourceFetchError(
            f"The folder {folder} cannot be made ({error.strerror}); name another one."
        ) from error
