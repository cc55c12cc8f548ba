"""The conversation log: one JSON object a line, and images by their digest."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from llavakit.errors import ParameterError
from llavakit.values import Image, SamplingParams
from llavakit.web.conversation import WebTurn
from llavakit.web.pictures import AttachedImage, pixels

logger = logging.getLogger(__name__)

_PARAMS = ("temperature", "top_p", "max_tokens", "seed")


@dataclass(frozen=True, slots=True)
class LogPosition:
    """Where in which conversation something happened; turns are numbered from 1."""

    conversation: str
    turn: int


class ConversationLog:
    """Keeps what was asked and answered, and what visitors thought of it. Thread-safe.

    ``conversations-YYYY-MM-DD.jsonl`` has a line for each answer (``"event": "answer"``), vote
    and flag; ``images/DIGEST.png`` holds each image once, however often it was shown. Files
    are readable by their owner alone.

    Args:
        folder: made if it is not there.

    Raises:
        ParameterError: nothing can be written there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._pictures = folder / "images"
        self._lock = threading.Lock()
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._pictures.mkdir(mode=0o700, exist_ok=True)
            self._append("")
        except OSError as error:
            raise ParameterError(
                f"The log cannot be written to {folder}: {error.strerror or error}."
            ) from error

    def answer(
        self, place: LogPosition, turn: WebTurn, params: SamplingParams, system: str
    ) -> None:
        """Keep a turn that is over, its images included."""
        answer = turn.answer
        sampling = asdict(params)
        facts = {
            "event": "answer",
            "model": answer.model,
            "system": system or None,
            "question": turn.text,
            "images": [{"name": shown.name, "digest": shown.digest} for shown in turn.pictures],
            "answer": answer.text,
            "ended": str(answer.stage),
            "error": answer.error or None,
            "params": {name: sampling[name] for name in _PARAMS},
            "usage": None if answer.usage is None else asdict(answer.usage),
            "seconds": round(answer.first_token + answer.writing, 3),
        }
        self._keep(place, facts, turn.pictures)

    def feedback(self, place: LogPosition, feedback: str | None) -> None:
        """Keep a vote or a flag; None takes it back."""
        self._keep(place, {"event": "feedback", "feedback": feedback})

    def _keep(
        self, place: LogPosition, facts: Mapping[str, Any], pictures: Sequence[AttachedImage] = ()
    ) -> None:
        record = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "conversation": place.conversation,
            "turn": place.turn,
            **facts,
        }
        try:
            for picture in pictures:
                self._store(picture.image, picture.digest)
            self._append(json.dumps(record, ensure_ascii=False) + "\n")
        except OSError:
            # The visitor has the answer all the same; the operator must know.
            logger.exception("The conversation log cannot be written")

    def _store(self, image: Image, digest: str) -> None:
        place = self._pictures / f"{digest}.png"
        if place.exists():
            return
        unfinished = place.with_suffix(f".{threading.get_ident()}.part")
        with os.fdopen(_private(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), "wb") as file:
            pixels(image).rgb.save(file, "PNG")
        unfinished.replace(place)

    def _append(self, line: str) -> None:
        place = self.folder / f"conversations-{datetime.now(UTC):%Y-%m-%d}.jsonl"
        with self._lock:
            descriptor = _private(place, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            with os.fdopen(descriptor, "a", encoding="utf-8") as file:
                file.write(line)


def _private(path: Path, flags: int) -> int:
    return os.open(path, flags, 0o600)
