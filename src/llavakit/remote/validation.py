"""JSON Schema (draft 2020-12, https://json-schema.org/draft/2020-12) on the client.

Servers accept schemas and ignore them, so what comes back is checked here. Own code, because
the library that checks everything is no dependency of llavakit, and an answer of a model needs
little of it. What is not checked here is refused beforehand (:func:`check_schema`), never
passed over. ``format`` and content keywords are annotations, as the standard has it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from math import isfinite
from typing import Any, TypeAlias
from urllib.parse import unquote

from llavakit.engine.schema_faults import field_named
from llavakit.errors import SchemaError

Fault: TypeAlias = tuple[str, str]
"""Where (a path such as ``$.people[0].age``) and what is wrong there."""

_MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
_SINGLES = (
    "additionalProperties",
    "items",
    "contains",
    "propertyNames",
    "not",
    "if",
    "then",
    "else",
)
_UNCHECKED = frozenset(
    {
        "$dynamicRef",
        "$recursiveRef",
        "unevaluatedProperties",
        "unevaluatedItems",
        "dependencies",
        "additionalItems",
    }
)


def check_schema(schema: Any, who: str = "") -> None:
    """Refuses a schema that :func:`faults` could not check an answer against.

    Args:
        schema: the schema.
        who: how the error calls it.

    Raises:
        SchemaError: it is no schema, or uses what is not checked; the field is named.
    """
    try:
        for path, part in _parts(schema, ""):
            try:
                _check_part(part, schema)
            except SchemaError as error:
                if not (who or path):
                    raise
                told, named = str(error), f"{who or 'The schema'}{field_named(path)}"
                raise SchemaError(f"{named}: {told[:1].lower()}{told[1:]}") from error
    except RecursionError as error:
        raise SchemaError("The schema is nested too deeply.") from error


def _check_part(part: Any, root: Any) -> None:
    if isinstance(part, bool):
        return
    if not isinstance(part, Mapping):
        raise SchemaError(f"A schema is an object or a boolean, not {type(part).__name__}.")
    for keyword in _UNCHECKED & part.keys():
        raise SchemaError(
            f"The schema uses {keyword!r}, which an answer from a server cannot be checked for; "
            "write it without."
        )
    if isinstance(part.get("items"), (list, tuple)):
        raise SchemaError("The schema has a list of items; name it prefixItems.")
    if "$ref" in part:
        _resolved(part["$ref"], root)
    for expression in part.get("patternProperties", ()):
        _expression(expression)
    if "pattern" in part:
        _expression(part["pattern"])


def _parts(schema: Any, path: str) -> Iterator[tuple[str, Any]]:
    """The schema and all schemas inside it, with the field that each is about."""
    yield path, schema
    if not isinstance(schema, Mapping):
        return
    inner: list[tuple[str, Any]] = [
        (f"{path}[]" if key == "items" else path, schema[key]) for key in _SINGLES if key in schema
    ]
    for key in _MAPS:
        if isinstance(schema.get(key), Mapping):
            below = f"{path}." if path else ""
            inner.extend((f"{below}{name}", one) for name, one in schema[key].items())
    for key in _LISTS:
        inner.extend((path, one) for one in schema.get(key) or ())
    for name, part in inner:
        if not isinstance(part, (list, tuple)):  # a list of items is told of above
            yield from _parts(part, name)


def faults(value: Any, schema: Any) -> Iterator[Fault]:
    """What is wrong with a JSON value; nothing if it obeys.

    Args:
        value: parsed JSON.
        schema: one that :func:`check_schema` let pass.
    """
    yield from _Check(schema).faults(value, schema, "$")


class _Check:
    """One schema with its definitions."""

    def __init__(self, root: Any) -> None:
        self._root = root

    def faults(self, value: Any, schema: Any, at: str) -> Iterator[Fault]:
        if schema is True:
            return
        if schema is False:
            yield at, "must not be there"
            return
        if "$ref" in schema:
            yield from self.faults(value, _resolved(schema["$ref"], self._root), at)
        yield from _plain(value, schema, at)
        yield from self._combined(value, schema, at)
        if isinstance(value, Mapping):
            yield from self._object(value, schema, at)
        elif isinstance(value, list):
            yield from self._array(value, schema, at)

    def _fits(self, value: Any, schema: Any) -> bool:
        return next(self.faults(value, schema, "$"), None) is None

    def _combined(self, value: Any, schema: Mapping[str, Any], at: str) -> Iterator[Fault]:
        for part in schema.get("allOf", ()):
            yield from self.faults(value, part, at)
        if "anyOf" in schema and not any(self._fits(value, part) for part in schema["anyOf"]):
            yield at, "fits none of the schemas of anyOf"
        if "oneOf" in schema:
            fitting = sum(self._fits(value, part) for part in schema["oneOf"])
            if fitting != 1:
                yield at, f"fits {fitting} of the schemas of oneOf instead of one"
        if "not" in schema and self._fits(value, schema["not"]):
            yield at, "fits the schema of not"
        if "if" in schema:
            branch = "then" if self._fits(value, schema["if"]) else "else"
            yield from self.faults(value, schema.get(branch, True), at)

    def _object(
        self, value: Mapping[str, Any], schema: Mapping[str, Any], at: str
    ) -> Iterator[Fault]:
        for name in schema.get("required", ()):
            if name not in value:
                yield at, f"lacks the property {name!r}"
        yield from _sized(len(value), schema, "Properties", "properties", at)
        for name, others in schema.get("dependentRequired", {}).items():
            missing = [other for other in others if name in value and other not in value]
            if missing:
                yield at, f"has {name!r} without {missing[0]!r}"
        for name, part in schema.get("dependentSchemas", {}).items():
            if name in value:
                yield from self.faults(value, part, at)
        named = schema.get("properties", {})
        patterns = schema.get("patternProperties", {})
        for name, inner in value.items():
            parts = [part for pattern, part in patterns.items() if _expression(pattern)(name)]
            if name in named:
                parts.append(named[name])
            for part in parts or [schema.get("additionalProperties", True)]:
                if part is False:
                    yield at, f"has the property {name!r}, which the schema does not let in"
                else:
                    yield from self.faults(inner, part, f"{at}.{name}")
            if not self._fits(name, schema.get("propertyNames", True)):
                yield at, f"has a property named {name!r}, which the schema does not let in"

    def _array(self, value: list[Any], schema: Mapping[str, Any], at: str) -> Iterator[Fault]:
        yield from _sized(len(value), schema, "Items", "items", at)
        first = schema.get("prefixItems", ())
        for index, inner in enumerate(value):
            part = first[index] if index < len(first) else schema.get("items", True)
            yield from self.faults(inner, part, f"{at}[{index}]")
        if schema.get("uniqueItems") and any(
            same(one, other) for i, one in enumerate(value) for other in value[:i]
        ):
            yield at, "has the same item twice"
        if "contains" in schema:
            found = sum(self._fits(inner, schema["contains"]) for inner in value)
            if not schema.get("minContains", 1) <= found <= schema.get("maxContains", found):
                yield at, f"has {found} items that fit the schema of contains"


def _plain(value: Any, schema: Mapping[str, Any], at: str) -> Iterator[Fault]:
    """What needs no look inside."""
    kinds = schema.get("type")
    if kinds is not None:
        kinds = (kinds,) if isinstance(kinds, str) else kinds
        if not any(_is_a(value, kind) for kind in kinds):
            yield at, f"is {_shown(value)} and not of type {' or '.join(kinds)}"
    if "const" in schema and not same(value, schema["const"]):
        yield at, f"is {_shown(value)} and not {_shown(schema['const'])}"
    if "enum" in schema and not any(same(value, one) for one in schema["enum"]):
        yield at, f"is {_shown(value)}, which is not in the enum"
    if isinstance(value, str):
        yield from _sized(len(value), schema, "Length", "characters", at)
        if "pattern" in schema and not _expression(schema["pattern"])(value):
            yield at, f"is {_shown(value)}, which does not match {schema['pattern']!r}"
    elif _is_a(value, "number"):
        yield from _number(value, schema, at)


def _number(value: float, schema: Mapping[str, Any], at: str) -> Iterator[Fault]:
    for keyword, holds in _BOUNDS.items():
        limit = schema.get(keyword)
        if limit is not None and not holds(value, limit):
            yield at, f"is {value}, against {keyword} {limit}"
    step = schema.get("multipleOf")
    if step is not None and (not isfinite(value) or Fraction(str(value)) % Fraction(str(step))):
        yield at, f"is {value}, which is no multiple of {step}"


_BOUNDS: Mapping[str, Callable[[float, float], bool]] = {
    "minimum": lambda value, limit: value >= limit,
    "maximum": lambda value, limit: value <= limit,
    "exclusiveMinimum": lambda value, limit: value > limit,
    "exclusiveMaximum": lambda value, limit: value < limit,
}


def _sized(
    size: int, schema: Mapping[str, Any], keyword: str, what: str, at: str
) -> Iterator[Fault]:
    least, most = schema.get(f"min{keyword}", 0), schema.get(f"max{keyword}", size)
    if size < least:
        yield at, f"has {size} {what}, fewer than {least}"
    if size > most:
        yield at, f"has {size} {what}, more than {most}"


def _is_a(value: Any, kind: str) -> bool:
    if isinstance(value, bool) or value is None:
        return kind == ("null" if value is None else "boolean")
    if isinstance(value, str):
        return kind == "string"
    if isinstance(value, Mapping):
        return kind == "object"
    if isinstance(value, Sequence):
        return kind == "array"
    return kind == "number" or (
        kind == "integer" and (isinstance(value, int) or value.is_integer())
    )


def same(one: Any, other: Any) -> bool:
    """Whether two JSON values are equal: 1 is 1.0, and true is not 1."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    lists = (list, tuple)
    if isinstance(one, lists) and isinstance(other, lists):
        return len(one) == len(other) and all(map(same, one, other))
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)


def _expression(pattern: Any) -> Callable[[str], Any]:
    try:
        return re.compile(pattern).search
    except (re.error, TypeError) as error:
        raise SchemaError(f"The pattern {pattern!r} cannot be used: {error}.") from error


def _resolved(reference: Any, root: Any) -> Any:
    """The schema that a ``$ref`` leads to: a JSON pointer inside the same document."""
    if not isinstance(reference, str) or not (reference == "#" or reference.startswith("#/")):
        raise SchemaError(f"The reference {reference!r} does not begin with '#/'.")
    place = root
    for step in reference.split("/")[1:]:
        step = unquote(step).replace("~1", "/").replace("~0", "~")
        try:
            place = place[int(step)] if isinstance(place, (list, tuple)) else place[step]
        except (KeyError, IndexError, ValueError, TypeError) as error:
            raise SchemaError(f"The reference {reference!r} leads nowhere.") from error
    return place


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
