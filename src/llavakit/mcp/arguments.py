"""Arguments of a call, held to the schema that the tool declares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from llavakit._hints import shown
from llavakit.errors import ParameterError

Arguments = TypeVar("Arguments", bound=BaseModel)

_KINDS = {
    "string_type": "a text",
    "string_unicode": "a text of valid Unicode",
    "list_type": "a list",
    "dict_type": "an object",
}


def read_arguments(tool: str, model: type[Arguments], given: Mapping[str, Any]) -> Arguments:
    """Return the arguments of a call.

    Args:
        tool: the tool's name, for the error.
        model: what it takes.
        given: what the client sent.

    Raises:
        ParameterError: the first argument that is missing, unknown or of a wrong type, in one
            sentence.
    """
    # Clients whose schemas know no absence write null for what is left out.
    fields = model.model_fields
    optional = {name for name, field in fields.items() if not field.is_required()}
    given = {key: one for key, one in given.items() if one is not None or key not in optional}
    try:
        return model.model_validate(given)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = _place(first["loc"])
        takes = ", ".join(fields) or "no arguments"
        if first["type"] == "missing":
            text = f"{tool} needs {where}; it takes {takes}."
        elif first["type"] == "extra_forbidden":
            text = f"{tool} has no argument {where}; it takes {takes}."
        else:
            kind = _KINDS.get(first["type"], "of another kind")
            text = f"{where} of {tool} is {_value(first['input'])}; it must be {kind}."
        raise ParameterError(text) from None


def _place(loc: tuple[int | str, ...]) -> str:
    """Return the name of an argument, or of an element of it."""
    head, *rest = loc
    name = str(head)
    name = name if len(name) <= 80 else f"{name[:77]}..."
    return name + "".join(f"[{one}]" for one in rest if isinstance(one, int))


def _value(value: Any) -> str:
    if isinstance(value, (dict, list)):
        return "an object" if isinstance(value, dict) else "a list"
    if isinstance(value, str):  # it holds half a character, and cannot be sent back
        return "a broken text"
    return shown(value)
