"""What is wrong with a training record by its name, and keys that must not be dropped.

A record may carry any notes beside its conversation (a source, sizes, scores); they are not read.
Keys that declare something else to look at or to learn are refused where they are not honoured.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

KINDS: dict[str, str] = {
    "malformed": "it is no JSON, or not of a known form",
    "unsupported": "it has a key that changes what it means, and that is not honoured",
    "unknown-role": "a turn has an unknown role",
    "role-order": "questions and answers do not take turns",
    "assistant-first": "the assistant begins; the original left such a turn out",
    "no-answer": "the assistant says nothing in it",
    "empty-answer": "an answer has no words",
    "empty-question": "a question has neither words nor images",
    "image-count": "images and <image> marks are not equally many",
    "missing-image": "an image's file is not there",
    "unreadable-image": "an image cannot be used",
    "duplicate-id": "an earlier record has the same id",
    "over-length": "it has more tokens than max_length",
    "uncuttable": "it is longer than max_length, and cannot be cut there",
    "no-labels": "the template finds nothing to learn in it",
}
"""Every fault by its name."""

IMAGE_KEYS = ("image", "images")
SYSTEM_KEYS = ("system", "system_prompt")

_MEDIA = re.compile(r"(?i)(^|_)(videos?|audios?|speech|sounds?|clips?|frames?)(_|$)")
_IMAGES = re.compile(r"(?i)(^|_)(images?|imgs?|pictures?|photos?)(_|$)")
# Notes about an image, such as of what data set and size it is.
_NOTES = re.compile(
    r"(?i)(^|_)(ids?|sizes?|width|height|shape|source|sources|hash|md5|sha256|dataset|caption|"
    r"captions|count|num|has|is|license|tags?|format|split|index|score|scores|type)(_|$)"
)
_INSTRUCTIONS = ("tools", "functions", "tool_calls", "function_call")
# Of a turn: which turns are learnt, and what else it says.
_OF_TURNS = ("weight", "train", "loss", "mask", "prefix", *_INSTRUCTIONS)


class FaultyRecord(Exception):
    """What is wrong with one record; it is caught and put into a report.

    Attributes:
        kind: one of :data:`KINDS`.
        text: what exactly.
    """

    def __init__(self, kind: str, text: str) -> None:
        assert kind in KINDS, kind
        super().__init__(text)
        self.kind = kind
        self.text = text


def is_absent(value: Any) -> bool:
    """Whether a value says nothing: null, or an empty text, list or object."""
    return value is None or (isinstance(value, (str, list, tuple, Mapping)) and not value)


def refuse_unsupported(record: Mapping[str, Any]) -> None:
    """Raise a :class:`FaultyRecord` for a key that changes a record's meaning unread.

    Args:
        record: what its JSON says.
    """
    for key, value in record.items():
        if is_absent(value) or value is False or key in (*IMAGE_KEYS, *SYSTEM_KEYS):
            continue
        if not isinstance(key, str):
            continue
        if _MEDIA.search(key) and not _NOTES.search(key):
            what = "LLaVA is trained on images and text here; leave the record out"
            raise FaultyRecord("unsupported", f'it has "{key}" ({str(value)[:60]}): {what}')
        if _IMAGES.search(key) and not _NOTES.search(key):
            raise FaultyRecord(
                "unsupported", f'it has "{key}"; name its images by "image" or "images"'
            )
        if key in _INSTRUCTIONS:
            raise FaultyRecord("unsupported", f'it has "{key}", and tools are not trained')


def refuse_unsupported_turn(turn: Mapping[str, Any], number: int) -> None:
    """Raise a :class:`FaultyRecord` for a key that changes a turn's meaning unread.

    Args:
        turn: what its JSON says.
        number: which turn it is, from 1.
    """
    for key, value in turn.items():
        # A weight of 1 and a turn that is learnt are what is done anyway.
        if is_absent(value) or (key in ("weight", "train", "loss") and value in (1, True)):
            continue
        if key in ("mask", "prefix") and not value:
            continue
        other = isinstance(key, str) and (_MEDIA.search(key) or _IMAGES.search(key))
        if key in _OF_TURNS or (other and not _NOTES.search(key)):
            raise FaultyRecord(
                "unsupported", f'turn {number} has "{key}" ({str(value)[:60]}), which is not read'
            )
