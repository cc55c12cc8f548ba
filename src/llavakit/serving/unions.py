"""Unions whose errors name the value that is wrong, and never the rule of another branch.

pydantic tries the branches of a plain union one after the other and reports the first. Here the
branch is chosen by what the value is: by its type in JSON, or by one of its fields. The places
of an error then hold the branch as ``<name>``, which no field of a request is called.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pydantic import Discriminator

BY_SHAPE: Final = "value_shape"
"""The ``type`` of an error about a value of no possible JSON type; its ``msg`` are those types."""
BY_FIELD: Final = "field_value"
"""The ``type`` of an error about an object whose field names no branch; its ``msg`` is the field,
a colon, and what the field may be."""

_SHAPES: Mapping[type, str] = {
    str: "string",
    list: "list",
    dict: "object",
    bool: "boolean",
    int: "number",
    float: "number",
    type(None): "null",
}


def shape(value: Any) -> str:
    """Return what a parsed JSON value is: ``string``, ``list``, ``object``, ``number``, ..."""
    return _SHAPES.get(type(value), "object")


def is_branch(place: Any) -> bool:
    """Whether a place of an error is the name of a branch."""
    return isinstance(place, str) and place.startswith("<") and place.endswith(">")


def by_shape(**shapes: str) -> Discriminator:
    """Choose the branch ``<string>``, ``<list>`` or ``<object>`` by a value's type in JSON.

    Args:
        shapes: what a value of each possible type is, in words for an error.
    """

    def branch(value: Any) -> str | None:
        return f"<{shape(value)}>" if shape(value) in shapes else None

    return _discriminator(branch, BY_SHAPE, " or ".join(shapes.values()))


def by_field(name: str, *values: str, usual: str | None = None) -> Discriminator:
    """Choose the branch ``<value>`` by a field of an object.

    Args:
        name: of the field.
        values: all that it may be.
        usual: the value of a field that is left out; None where it may not be.
    """

    def branch(value: Any) -> str | None:
        # A model, where pydantic serialises and does not validate.
        given = value if isinstance(value, dict) else {name: getattr(value, name, None)}
        found = given.get(name, usual)
        return f"<{found}>" if isinstance(found, str) and found in values else None

    return _discriminator(branch, BY_FIELD, f"{name}: {', '.join(map(repr, values))}")


def _discriminator(branch: Any, kind: str, message: str) -> Discriminator:
    # Not as its context: a dictionary there cannot be hashed, and types of unions must be.
    return Discriminator(branch, custom_error_type=kind, custom_error_message=message)
