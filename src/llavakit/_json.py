"""JSON in answers that a limit of tokens may have cut."""

from __future__ import annotations

import json


def is_whole(text: str) -> bool:
    """Return whether the text of a cut answer is a complete JSON value nevertheless.

    A number is not: the next token could have been another digit.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, bool) or not isinstance(value, (int, float))
