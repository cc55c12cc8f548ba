"""Bodies that are not what they should be: errors name the argument that is wrong."""

from __future__ import annotations

import json
from difflib import get_close_matches
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from llavakit.serving.errors import Refusal
from llavakit.serving.unions import BY_FIELD, BY_SHAPE, is_branch, shape

T = TypeVar("T", bound=BaseModel)

MOST_VALUES = 1_000_000
_BOM = b"\xef\xbb\xbf"
"""Some clients begin with it, and a parser may ignore it (RFC 8259, section 8.1)."""

_STORE = "needs stored responses, and nothing is stored here; send the whole conversation as input"
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
    "audio": "there is no sound here; leave it out",
    "web_search_options": "nothing is searched here; leave it out",
    "previous_response_id": f"it {_STORE}",
    "conversation": f"it {_STORE}",
    "background": f"it {_STORE}",
    "prompt": "prompts are not stored here; send the text as input or instructions",
    "truncation": "nothing is left out in silence; shorten the input",
    "context_management": "nothing is left out in silence; shorten the input",
    "cache_salt": "prefixes are shared by all clients here; leave it out",
    "chat_template": "the checkpoint's own template is used; leave it out",
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
    body = body.removeprefix(_BOM)
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        if first["type"] == "json_invalid":
            reason = first["msg"].removeprefix("Invalid JSON: ")
            raise Refusal(
                400, f"The body is no valid JSON: {reason}.", code="invalid_json"
            ) from None
        raise _reported(kind, first, body) from None


def _reported(kind: type[BaseModel], error: ErrorDetails, body: bytes) -> Refusal:
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
    if where in _ADVICE:
        message = f"The argument {where!r} is not taken here; {_ADVICE[where]}."
        return Refusal(400, message, code="unsupported_parameter", param=where)
    reason = _reason(error, where or "The body")
    return Refusal(400, reason, code="invalid_value", param=where or None)


def _reason(error: ErrorDetails, at: str) -> str:
    """A sentence that says what is wrong with a value."""
    value = error["input"]
    if error["type"] == BY_SHAPE:
        return f"{at} is {_named(value)}; it must be {error['msg']}."
    if error["type"] == BY_FIELD:
        field, _, values = error["msg"].partition(": ")
        if not isinstance(value, dict):
            return f"{at} is {_named(value)}; it must be an object with a field {field!r}."
        if value.get(field) == "item_reference":
            return f"{at}: an item_reference {_STORE}."
        if field not in value:
            return f"{at}.{field} is missing; it must be one of {values}."
        found = value[field]
        shown = repr(found[:100]) if isinstance(found, str) else _named(found)
        return f"{at}.{field} is {shown}, which is not taken here; it must be one of {values}."
    reason = error["msg"][:1].lower() + error["msg"][1:]
    return f"{at} is not as it must be: {reason}."


def _named(value: Any) -> str:
    """What a value is, in words."""
    kind = shape(value)
    if kind == "null":
        return kind
    return f"an {kind}" if kind == "object" else f"a {kind}"


def _path(error: ErrorDetails, body: bytes) -> tuple[str, str]:
    """Return where in the body the error is, and the name of the field there."""
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
        elif last and error["type"] == "missing" and not is_branch(place):
            name = str(place)
            path = f"{path}.{name}" if path else name
    return path, name
