"""What a model reads on pages: transcriptions, descriptions, and data of a schema.

Pure over :class:`~llavakit.backend.Backend`: many requests are under way at once, so that the
engine has something to batch, and results come in the order of the pages.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, fields
from typing import Annotated, Any, TypeAlias

from llavakit._checks import Said, checked, known
from llavakit._json import is_whole
from llavakit.backend import Backend, to_request
from llavakit.documents.confidence import Confidence, confidence_of, confidence_of_data
from llavakit.documents.folders import Failure
from llavakit.documents.pages import Page
from llavakit.documents.tasks import Task, TaskName
from llavakit.errors import (
    InputError,
    LlavaKitError,
    ParameterError,
    QueueFullError,
    SchemaError,
)
from llavakit.runs.window import OF_ONE_REQUEST, in_order
from llavakit.streams import AnswerStream, gather
from llavakit.values import Completion, FinishReason, Message, Usage

Model: TypeAlias = Annotated[
    Backend,
    Said(
        "a backend, as llavakit.load(...) or backend_for() of a framework's model object gives it"
    ),
]
"""Who reads: the frameworks' model objects have a backend, and are none."""
Opened: TypeAlias = Annotated[
    Iterable[Page | Failure], Said('pages, which open_files("scan.pdf") gives, and no names')
]
Readings: TypeAlias = "Generator[Reading, None, None]"


@dataclass(frozen=True, slots=True)
class Reading:
    """What was read on one page, or why it was not.

    Attributes:
        source, page: the document's name and the page's number; None for a whole document.
        size: width and height of the page in pixels.
        sha256: the digest of the page's image.
        task: the task's name.
        text: what the model said; of an extraction only where it gave no data.
        data: what was extracted; it obeys the schema.
        finish_reason: ``"stop"``, or ``"length"`` where ``max_tokens`` cut the answer.
        usage: tokens of all requests for this page.
        error: why there is no answer.
        text_layer: the PDF's own text, where it was asked for.
        confidence: how sure the model was, of data for each field, where it was asked for and the
            backend reports it.
    """

    source: str
    page: int | None
    task: str
    size: tuple[int, int] | None = None
    sha256: str | None = None
    text: str | None = None
    data: Any = None
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    error: LlavaKitError | None = None
    text_layer: str | None = None
    confidence: Confidence | None = None


@checked
def transcribe(backend: Model, pages: Opened, **options: Any) -> Readings:
    """The text on pages; options are fields of :class:`Task` and those of :func:`read_pages`."""
    return _read("transcribe", backend, pages, options)


@checked
def describe(backend: Model, pages: Opened, **options: Any) -> Readings:
    """What pages show; options are fields of :class:`Task` and those of :func:`read_pages`."""
    return _read("describe", backend, pages, options)


@checked
def extract(backend: Model, pages: Opened, schema: Any, **options: Any) -> Readings:
    """Data of a JSON schema (or pydantic class) from pages; options as in :func:`transcribe`."""
    return _read("extract", backend, pages, {"schema": schema, **options})


@checked
def read_pages(
    backend: Model,
    pages: Opened,
    task: Task,
    *,
    window: int | None = None,
    progress: Callable[[Reading], None] | None = None,
) -> Readings:
    """Reads pages with a model.

    Args:
        backend: the model.
        pages: such as :func:`~llavakit.documents.open_files` gives. They are taken as there is
            room for their requests, and their images are not kept.
        task: what is wanted of each.
        window: most requests under way; None is twice what the model runs at once,
            and at least 64.
        progress: called with every result, before it is given.

    Yields:
        One result for each page and failure, in their order. A page that the model cannot
        take (too long, too large, too slow) has an error; the others go on.

    Raises:
        SchemaError: before any page is read: the schema cannot be compiled.
        EngineError, RemoteError, ModelError: the model itself failed, and so would all pages.

    Leaving the iteration cancels what is under way.
    """
    return _watched(in_order(backend, (_Asked(page, task) for page in pages), window), progress)


def _read(
    name: TaskName, backend: Backend, pages: Iterable[Page | Failure], options: dict[str, Any]
) -> Readings:
    known(options, (*_FIELDS, *_OWN), name)
    own = {key: options.pop(key) for key in _OWN if key in options}
    return read_pages(backend, pages, Task(name, **options), **own)


_OWN = ("window", "progress")
_FIELDS = tuple(one.name for one in fields(Task) if one.name != "name")


def _watched(readings: Readings, progress: Callable[[Reading], None] | None) -> Readings:
    with contextlib.closing(readings):
        for reading in readings:
            if progress is not None:
                progress(reading)
            yield reading


class _Asked:
    """A page whose requests are under way, or a failure that waits for its turn."""

    def __init__(self, page: Page | Failure, task: Task) -> None:
        if not isinstance(page, (Page, Failure)):
            raise ParameterError(
                f"Pages are what open_files gives, not {type(page).__name__}: "
                'open_files("scan.pdf").'
            )
        self._task = task
        self._streams: list[AnswerStream] = []
        self._questions: list[Message] = []
        self._error: LlavaKitError | None = None
        self._known: dict[str, Any] = {"source": page.source, "page": page.number}
        if isinstance(page, Failure):
            self._error = page.error
            return
        self._known |= {"size": page.size, "sha256": page.digest, "text_layer": page.text}
        self._questions = task.questions(page)

    def __len__(self) -> int:
        return len(self._streams)

    def submit(self, backend: Backend, room: int) -> bool:
        """Submits requests while there is room; whether none is left."""
        try:
            while self._questions and room > 0:
                request = to_request(self._questions[0], self._task.params)
                self._streams.append(backend.submit(request))
                del self._questions[0]
                room -= 1
        except QueueFullError:
            return False
        except SchemaError:
            raise  # of the task, and so of all pages
        except InputError as error:
            self._fail(error)
        return not self._questions

    def result(self) -> Reading:
        """What came of it, waiting for it."""
        answers: list[Completion] = []
        try:
            if self._error is None:
                answers = [gather(stream) for stream in self._streams]
        except OF_ONE_REQUEST as error:
            self._fail(error)
        finally:
            self.close()
        if self._error is not None:
            return Reading(task=self._task.name, error=self._error, **self._known)
        return Reading(task=self._task.name, **self._known, **_fields_of(answers, self._task))

    def close(self) -> None:
        """Cancels what is under way."""
        for stream in self._streams:
            stream.close()

    def _fail(self, error: LlavaKitError) -> None:
        self._error = error
        self._questions = []
        self.close()


def _fields_of(answers: list[Completion], task: Task) -> dict[str, Any]:
    """The fields of a reading that come from the model."""
    text = "\n".join(answer.text.strip() for answer in answers if answer.text.strip())
    cut = any(answer.finish_reason == "length" for answer in answers)
    found: dict[str, Any] = {
        "text": text,
        "finish_reason": "length" if cut else answers[-1].finish_reason,
        "usage": Usage(*(sum(one) for one in zip(*map(_figures, answers), strict=True))),
    }
    if task.schema is not None and (not cut or is_whole(text)):
        # Only an answer that was cut is no JSON; what there is of it is left as text.
        with contextlib.suppress(ValueError):
            found["data"] = json.loads(text)
            found["text"] = None
    if task.confidence:
        tokens = [token for answer in answers for token in answer.logprobs]
        is_data = found["text"] is None
        found["confidence"] = confidence_of_data(text, tokens) if is_data else confidence_of(tokens)
    return found


def _figures(answer: Completion) -> tuple[int, int, int, int]:
    usage = answer.usage
    return (
        usage.prompt_tokens,
        usage.completion_tokens,
        usage.cached_tokens,
        usage.image_tokens,
    )
