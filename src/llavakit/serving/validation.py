"""Bodies that are not what they should be, told by the argument that is to blame."""

from __future__ import annotations

import json
from difflib import get_close_matches
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from llavakit.serving.errors import Refusal

T = TypeVar("T", bound=BaseModel)

MOST_VALUES = 1_000_000

_ADVICE = {
    "functions": "send tools",
    "function_call": "send tool_choice",
    "guided_json": 'send structured_outputs={"json": ...}',
    "guided_regex": 'send structured_outputs={"regex": ...}',
    "guided_choice": 'send structured_outputs={"choice": ...}',
    "guided_grammar": 'send structured_outputs={"grammar": ...}',
    "json_schema": "send response_format",
    "grammar": 'send structured_outputs={"grammar": ...}',
    "best_of": "send n",
    "use_beam_search": "there is no beam search here",
}


def parse(kind: type[T], body: bytes) -> T:
    """The body as a value of ``kind``.

    Raises:
        Refusal: 400, with the argument that is to blame; 413.
    """
    if body.count(b",") > MOST_VALUES:
        # Base64 has no commas, so these are values; each takes many times its bytes in memory.
        raise Refusal(
            413,
            f"The body has more than {MOST_VALUES:,} values; send a shorter conversation.",
            code="request_too_large",
        )
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        if first["type"] == "json_invalid":
            reason = first["msg"].removeprefix("Invalid JSON: ")
            raise Refusal(
                400, f"The body is no valid JSON: {reason}.", code="invalid_json"
            ) from None
        raise _told(kind, first, body) from None


def _told(kind: type[BaseModel], error: ErrorDetails, body: bytes) -> Refusal:
    where, name = _path(error, body)
    if error["type"] == "extra_forbidden":
        known = [field.alias or key for key, field in kind.model_fields.items()]
        near = get_close_matches(name, known, n=1, cutoff=0.75) if "." not in where else []
        advice = _ADVICE.get(where) or (f"did you mean {near[0]!r}?" if near else "leave it out")
        message = f"The argument {where!r} is not known here; {advice.rstrip('?.')}"
        message += "?" if advice.endswith("?") else "."
        return Refusal(400, message, code="unknown_parameter", param=where)
    if error["type"] == "missing":
        return Refusal(400, f"{where} is missing.", code="missing_parameter", param=where)
    reason = error["msg"][:1].lower() + error["msg"][1:]
    at = where or "The body"
    return Refusal(
        400, f"{at} is not as it must be: {reason}.", code="invalid_value", param=where or None
    )


def _path(error: ErrorDetails, body: bytes) -> tuple[str, str]:
    """Where in the body the error is: pydantic also names the branches of unions on its way."""
    value: Any = json.loads(body)
    path = name = ""
    places = error["loc"]
    for number, place in enumerate(places):
        last = number == len(places) - 1
        if isinstance(place, int) and isinstance(value, list) and place < len(value):
            value, path = value[place], f"{path}[{place}]"
        elif isinstance(place, str) and isinstance(value, dict) and place in value:
            value, name = value[place], place
            path = f"{path}.{place}" if path else place
        elif last and error["type"] == "missing":
            name = str(place)
            path = f"{path}.{name}" if path else name
    return path, name
