"""The files of a job: its lines, and beside them what it is and what is pending."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from llavakit._checks import checked
from llavakit.documents.folders import Document, Failure
from llavakit.documents.progress import ReadingPlan, canonical, entry_of
from llavakit.documents.reading import Reading
from llavakit.runs.atomic import write_atomic
from llavakit.runs.lines import Lines


class JobState:
    """What stands beside a file of lines: its job, the documents as they were, what is pending."""

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self._path = path
        self._settings = settings
        self._documents: dict[str, Any] = {}

    def read(self) -> dict[str, Any]:
        """What the last run wrote down."""
        state: dict[str, Any] = json.loads(self._path.read_bytes())
        self._documents = {entry[0]: entry for entry in state.get("documents") or ()}
        return state

    def write(
        self,
        documents: Sequence[Document | Failure],
        todo: ReadingPlan | None,
        finished: int | None = None,
    ) -> None:
        """Writes down the documents, and what is tried again until the run is through.

        Args:
            documents: of the job.
            todo: what the run does; None once it is done.
            finished: how many lines there are then. A file that has lost some is not finished.
        """
        entries = {entry[0]: entry for entry in map(entry_of, documents)}
        # Of what is missing it is remembered what it was.
        kept = {name: entry for name, entry in self._documents.items() if name not in entries}
        gone = {name for name in entries if entries[name][2] is None and name in self._documents}
        entries |= {name: self._documents[name] for name in gone}
        state = {
            **self._settings,
            "documents": [*kept.values(), *entries.values()],
            "retry": {} if todo is None else todo.retried,
            "finished": finished,
        }
        self._documents = {entry[0]: entry for entry in state["documents"]}
        write_atomic(self._path, json.dumps(state, indent=1).encode() + b"\n")


def without_dropped(path: Path, todo: ReadingPlan) -> Iterator[bytes]:
    """The lines of a file that a run does not take out."""
    with path.open("rb") as file:
        yield from (line for line in file if not todo.drops(json.loads(line)))


def put_in_order(lines: Lines, documents: Sequence[Document | Failure]) -> int:
    """Give a file the order of an undisturbed run, where a run that went on left another.

    Returns how many lines it has.
    """
    keys, places, at = [], [], 0
    with lines.path.open("rb") as file:
        for line in file:
            known = json.loads(line)
            keys.append((known["source"], known["page"]))
            places.append((at, len(line)))
            at += len(line)
    order = canonical(documents, keys)
    if order is None:
        return len(keys)

    def sorted_lines() -> Iterator[bytes]:
        with lines.path.open("rb") as file:
            for index in order:
                start, length = places[index]
                file.seek(start)
                yield file.read(length)

    lines.replace(sorted_lines())
    return len(keys)


@checked
def to_line(reading: Reading, model: str) -> dict[str, Any]:
    """A reading as the object that stands in its line; always with the same keys.

    ``cached_tokens`` is left out of the usage: it says what was read before, not what this
    page is.
    """
    usage = reading.usage
    error = reading.error
    line = {
        "source": reading.source,
        "page": reading.page,
        "size": None if reading.size is None else list(reading.size),
        "sha256": reading.sha256,
        "task": reading.task,
        "model": model,
        "text": reading.text,
        "data": reading.data,
        "finish_reason": reading.finish_reason,
        "usage": usage
        and {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "image_tokens": usage.image_tokens,
        },
        "error": error and {"type": type(error).__name__, "message": " ".join(str(error).split())},
    }
    if reading.text_layer is not None:
        line["text_layer"] = reading.text_layer
    if reading.confidence is not None:
        line["confidence"] = reading.confidence.to_dict()
    return line
