"""JSON Schema (draft 2020-12, https://json-schema.org/draft/2020-12) on the client.

Servers accept schemas and ignore them, so a schema is checked before it is sent, and what comes
back is checked against it, both by the library ``jsonschema``. What a validator of this draft
would pass over in silence is refused beforehand. ``format`` and content keywords are annotations,
as the standard has it. No reference is ever fetched.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from functools import cache
from math import isfinite
from typing import Any, TypeAlias

from llavakit.engine.schema_faults import field_named
from llavakit.errors import SchemaError

Fault: TypeAlias = tuple[str, str]
"""Where (a path such as ``$.people[0].age``) and what is wrong there."""

_OLDER = frozenset({"$recursiveRef", "dependencies", "additionalItems"})
"""Keywords of older drafts, which this one does not know and would pass over."""
_NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_LONGEST = 200


def check_schema(schema: Any, who: str = "") -> None:
    """Refuse a schema that is not one, or that :func:`faults` could not check an answer against.

    Args:
        schema: the schema.
        who: how the error calls it.

    Raises:
        SchemaError: the field and what is wrong with it.
    """
    who = who or "The schema"
    try:
        plain = _plain(schema)
        if not isinstance(plain, (dict, bool)):
            raise SchemaError(f"{who} is an object or a boolean, not {type(plain).__name__}.")
        _check_form(plain, who)
        parts = list(_parts(plain, ()))
        # Where a part has a name of its own, references are found when an answer is checked.
        named = any(isinstance(part, dict) and "$id" in part for _, part in parts)
        resolver = None if named else _resolver(plain)
        for path, part in parts:
            _check_part(part, resolver, f"{who}{field_named(_field(path))}")
    except RecursionError as error:
        raise SchemaError(f"{who} is nested too deeply.") from error


def faults(value: Any, schema: Any) -> Iterator[Fault]:
    """Find what is wrong with a JSON value; nothing if it obeys.

    Args:
        value: parsed JSON.
        schema: one that :func:`check_schema` let pass.

    Raises:
        SchemaError: a reference of the schema leads nowhere.
    """
    from referencing.exceptions import Unresolvable

    try:
        for error in _validator(_plain(schema)).iter_errors(value):
            yield error.json_path, _short(error.message)
    except Unresolvable as error:
        raise SchemaError(f"The reference {error.ref!r} of the schema leads nowhere.") from error


def _check_form(schema: Any, who: str) -> None:
    """Hold a schema against the schema of schemas."""
    import jsonschema

    try:
        _dialect().check_schema(schema)
    except jsonschema.SchemaError as error:
        path = list(error.absolute_path)
        at = f"{who}{field_named(_field(path))}"
        keyword = next((step for step in reversed(path) if isinstance(step, str)), "")
        raise SchemaError(f"{at}: {_reason(keyword, error)}.") from error


def _reason(keyword: str, error: Any) -> str:
    """What is wrong with the value of a keyword, in a form that says what to do."""
    value = error.instance
    if keyword == "type":
        return f"{value!r} is no type of JSON"
    if keyword == "items" and isinstance(value, list):
        return "it has a list of items; name it prefixItems"
    if keyword == "pattern" and isinstance(value, str):
        return f"the pattern {value!r} cannot be used"
    if error.validator == "type" and error.validator_value == ["object", "boolean"]:
        return f"a schema is an object or a boolean, not {type(value).__name__}"
    return f"its {keyword!r} cannot be used ({_short(error.message)})"


def _check_part(part: Any, resolver: Any, at: str) -> None:
    """Refuse what validators pass over, and references that lead nowhere."""
    from referencing.exceptions import Unresolvable

    if not isinstance(part, dict):
        return
    for keyword in sorted(_OLDER & part.keys()):
        raise SchemaError(
            f"{at} uses {keyword!r}, which is of an older draft of JSON Schema; write it in the "
            "words of 2020-12."
        )
    for keyword in ("$ref", "$dynamicRef"):
        reference = part.get(keyword)
        try:
            if reference is not None and resolver is not None:
                resolver.lookup(reference)
        except (Unresolvable, ValueError) as error:
            raise SchemaError(
                f"{at} refers to {reference!r}, which leads nowhere; put it into $defs, and begin "
                "with '#/'."
            ) from error


def _parts(schema: Any, path: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """The schema and all schemas inside it, each with its path."""
    yield path, schema
    if not isinstance(schema, dict):
        return
    for key, value in schema.items():
        if key in _NAMED and isinstance(value, dict):
            for name, one in value.items():
                yield from _parts(one, (*path, key, name))
        elif key in ("allOf", "anyOf", "oneOf", "prefixItems"):
            for number, one in enumerate(value):
                yield from _parts(one, (*path, key, number))
        elif key in _SINGLES:
            yield from _parts(value, (*path, key))


_SINGLES = frozenset(
    {
        "additionalProperties",
        "items",
        "contains",
        "propertyNames",
        "not",
        "if",
        "then",
        "else",
        "unevaluatedItems",
        "unevaluatedProperties",
    }
)


def _field(path: Sequence[Any]) -> str:
    """The field that a place in a schema is about: ``properties.a.items.type`` is ``a[]``."""
    found = ""
    steps = iter(path)
    for step in steps:
        if step in _NAMED:
            name = next(steps, None)
            if name is not None:
                found = f"{found}.{name}" if found else str(name)
        elif step == "items":
            found += "[]"
        elif step not in _SINGLES and not isinstance(step, int):
            if step in ("allOf", "anyOf", "oneOf", "prefixItems"):
                continue
            break
    return found


def _plain(value: Any) -> Any:
    """A schema in the types that JSON is parsed to."""
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return value


def _validator(schema: Any) -> Any:
    from referencing.jsonschema import EMPTY_REGISTRY

    return _dialect()(schema, registry=EMPTY_REGISTRY)


def _resolver(schema: Any) -> Any:
    from referencing.jsonschema import DRAFT202012, EMPTY_REGISTRY

    return EMPTY_REGISTRY.resolver_with_root(DRAFT202012.create_resource(schema))


@cache
def _dialect() -> Any:
    """Draft 2020-12, with multiples as decimal numbers are: 0.3 is one of 0.1."""
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import ValidationError
    from jsonschema.validators import extend

    def multiple(validator: Any, step: Any, value: Any, schema: Any) -> Iterator[ValidationError]:
        if not validator.is_type(value, "number"):
            return
        if not isfinite(value) or Fraction(str(value)) % Fraction(str(step)):
            yield ValidationError(f"{value!r} is not a multiple of {step}")

    return extend(Draft202012Validator, {"multipleOf": multiple})


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
