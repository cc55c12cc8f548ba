"""JSON schemas made strict: objects hold the properties that they list, and no others.

JSON Schema lets unlisted properties in unless a schema forbids them, and a weak model then invents
them without end. The one rule here: what fits the closed schema fits the open one. So an
object is left open where it is put together from several schemas, because a closed
subschema would forbid what another one demands.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

_DEFINITIONS = ("$defs", "definitions")
_MAPS = ("properties", *_DEFINITIONS)
_IN_PLACE = frozenset({"$ref", "allOf", "anyOf", "oneOf"})
_NEGATIVE = frozenset({"not", "if", "dependentSchemas", "unevaluatedProperties", "$dynamicRef"})
_OF_OBJECTS = frozenset({"properties", "required", "additionalProperties", "patternProperties"})


def closed(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Limit each object that lists its properties to those."""
    # Definitions are referred to from anywhere: one place that merges them keeps all open.
    merged = any(_merges(part) for part in _mappings(schema))
    return _closed(schema, _DEFINITIONS if merged else ())


def is_combined(schema: Mapping[str, Any]) -> bool:
    """Return whether anything besides ``properties`` says which properties an object may have."""
    decisive = _IN_PLACE | _NEGATIVE | {"additionalProperties", "patternProperties"}
    return not decisive.isdisjoint(schema)


def _closed(schema: Mapping[str, Any], untouched: Sequence[str]) -> dict[str, Any]:
    def part(value: Any) -> Any:
        return _closed(value, untouched) if isinstance(value, Mapping) else value

    result = dict(schema)
    for key, value in schema.items():
        if key in untouched:
            continue
        if key in _MAPS and isinstance(value, Mapping):
            result[key] = {name: part(inner) for name, inner in value.items()}
        elif key in ("items", "additionalProperties"):
            result[key] = part(value)
        elif isinstance(value, (list, tuple)) and (
            key == "prefixItems"
            or (key == "anyOf" and not _merges(schema))
            or (key == "oneOf" and not _merges(schema) and _exclusive(value))
        ):
            result[key] = [part(inner) for inner in value]
    if result.get("properties") and not is_combined(result):
        result["additionalProperties"] = False
    return result


def _merges(schema: Mapping[str, Any]) -> bool:
    """Whether several schemas speak about one and the same value."""
    in_place = _IN_PLACE & schema.keys()
    return bool(
        _NEGATIVE & schema.keys()
        or len(in_place) > 1
        or (in_place and _OF_OBJECTS & schema.keys())
        or len(schema.get("allOf") or ()) > 1
    )


def _mappings(value: Any) -> Iterator[Mapping[str, Any]]:
    """All mappings inside a schema, wherever they stand."""
    if isinstance(value, Mapping):
        yield value
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for inner in value:
            yield from _mappings(inner)


def _exclusive(parts: Sequence[Any]) -> bool:
    """Whether no value fits two of the schemas, even while they are open."""
    return all(
        isinstance(one, Mapping) and isinstance(other, Mapping) and _disjoint(one, other)
        for one, other in combinations(parts, 2)
    )


def _disjoint(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    kinds = {one.get("type"), other.get("type")} if _plain_types(one, other) else set()
    if len(kinds) == 2 and kinds != {"integer", "number"}:
        return True
    for name in set(one.get("required") or ()) & set(other.get("required") or ()):
        first, second = (
            _constants((part.get("properties") or {}).get(name)) for part in (one, other)
        )
        if first and second and first.isdisjoint(second):
            return True
    return False


def _plain_types(*parts: Mapping[str, Any]) -> bool:
    return all(isinstance(part.get("type"), str) for part in parts)


def _constants(schema: Any) -> set[str]:
    """The values that a schema admits if it names them, as JSON; empty if it does not."""
    if not isinstance(schema, Mapping):
        return set()
    values = [schema["const"]] if "const" in schema else schema.get("enum") or ()
    return {json.dumps(value, sort_keys=True) for value in values}
