"""Fields of a chat completion that a program adds for its server alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from llavakit.errors import ParameterError

_OURS = ("messages", "model", "stream", "stream_options", "tools", "tool_choice")
"""What llavakit itself must say."""


def to_extra_body(extra: Mapping[str, Any] | None) -> str:
    """The further fields as JSON.

    Raises:
        ParameterError: no JSON object, or a field that is not the program's to set.
    """
    if not isinstance(extra, (Mapping, type(None))):
        raise ParameterError(f"extra_body is {extra!r}; it must be a dict of fields or None.")
    for name in _OURS:
        if name in (extra or {}):
            raise ParameterError(f"extra_body holds {name!r}, which llavakit says itself.")
    try:
        return json.dumps(dict(extra or {}), sort_keys=True)
    except (TypeError, ValueError) as error:
        raise ParameterError(f"extra_body cannot be written as JSON ({error}).") from error


def with_extra_body(fields: Mapping[str, Any], extra_body: str) -> dict[str, Any]:
    """The fields of a request with the program's own.

    Raises:
        ParameterError: one is set by an argument as well, to something else.
    """
    return set_once(fields, json.loads(extra_body))


def set_once(fields: Mapping[str, Any], extra: Mapping[str, Any], kind: str = "") -> dict[str, Any]:
    """Both together; ``kind`` is what the names are called in errors.

    Raises:
        ParameterError: one is set by an argument as well, to something else.
    """
    for name, value in extra.items():
        if name in fields and fields[name] != value:
            raise ParameterError(
                f"extra_body sets {kind}{name!r} to {value!r}, and an argument to "
                f"{fields[name]!r}; set it once."
            )
    return {**fields, **extra}
