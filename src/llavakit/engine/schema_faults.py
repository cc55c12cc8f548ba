"""What is wrong with a schema that constrained decoding refuses, and in which field.

The library that compiles schemas reports a reason and no place. The place is found by compiling
the parts of the schema, down to the smallest one that is refused for the same reason.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from llavakit.engine.schemas import closed
from llavakit.values import Request

ReasonOf: TypeAlias = Callable[[Mapping[str, Any]], str | None]
"""Compiles a schema; the reason why it is refused, or None."""

_HEAD = re.compile(r"^(at \d+\(\d+\): )?(failed to compile JSON schema: )?")
_QUOTED = re.compile(r"^ *\d+ \| ")
_ROOT = "#/$defs/root"


@dataclass(frozen=True)
class _Fault:
    path: str
    part: Any
    reason: str


def schema_fault(request: Request, reason_of: ReasonOf) -> str | None:
    """Return a sentence that names the schema or tool, the field, and what is wrong.

    None if every schema of it can be compiled.
    """
    for subject, schema in _schemas(request):
        found = _fault(schema, schema, "", reason_of, frozenset({"#"}))
        if found is not None:
            return f"{subject}{field_named(found.path)}: {_sentence(found)}."
    return None


def grammar_fault(grammar: str, message: str, *, lark: bool) -> str:
    """Return a sentence about a regular expression or a Lark grammar that is refused."""
    if lark:
        return f"The grammar cannot be used: {reason_in(message)}."
    return f"The regular expression {grammar!r} cannot be used: {reason_in(message)}."


def schema_named(schema: Mapping[str, Any]) -> str:
    """Return the name of a schema in errors."""
    title = schema.get("title")
    return f"The schema {title!r}" if isinstance(title, str) and title else "The schema"


def tool_named(name: str) -> str:
    """Return the name of a tool's parameters in errors."""
    return f"The parameters of the tool {name!r}"


def field_named(path: str) -> str:
    """Return the name of a field in errors; empty for the whole schema."""
    return f", field {path!r}" if path else ""


def not_json_at(value: Any, path: str = "") -> str:
    """Return the path of the value that JSON cannot hold; empty if it is unknown.

    A value that holds itself has no such place.
    """
    parts: list[tuple[Any, Any]] = []
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            return path
        parts = list(value.items())
    elif isinstance(value, (list, tuple)):
        parts = list(enumerate(value))
    for key, part in parts:
        try:
            json.dumps(part, allow_nan=False)
        except RecursionError:
            return ""
        except (TypeError, ValueError) as error:
            if "Circular" in str(error):
                return ""
            return not_json_at(part, f"{path}.{key}" if path else str(key))
    return path


def reason_in(message: str) -> str:
    """Return the reason in a message of llguidance, on one line, without the quoted grammar."""
    lines = [line for line in message.strip().splitlines() if not _QUOTED.match(line)]
    error = next((line for line in lines if line.startswith("error: ")), "")
    reason = error.removeprefix("error: ") or _HEAD.sub("", lines[0] if lines else "")
    return reason.strip().rstrip(".:") or "no reason is given"


def _schemas(request: Request) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for tool in request.tools:
        yield tool_named(tool.name), closed({"type": "object", **tool.parameters})
    schema = request.params.json_schema
    if isinstance(schema, Mapping):
        yield schema_named(schema), closed(schema)


def _fault(
    root: Mapping[str, Any], part: Any, path: str, reason_of: ReasonOf, seen: frozenset[str]
) -> _Fault | None:
    if not isinstance(part, Mapping):
        return None if isinstance(part, bool) else _Fault(path, part, "")
    reason = reason_of(part if part is root else _alone(part, root, seen))
    if reason is None:
        return None
    needed = _needed(part) if _unfit(reason) else part
    inner = [(name, one, seen) for name, one in _parts(needed, path)]
    target = part.get("$ref")
    if isinstance(target, str) and target not in seen:
        inner.append((path, _pointed(root, target), seen | {target}))
    for name, one, known in inner:
        found = None if one is None else _fault(root, one, name, reason_of, known)
        # Where no value fits a subschema, a value may well fit the whole.
        if found is not None and _unfit(found.reason) == _unfit(reason):
            return found
    return _Fault(path, part, reason)


def _unfit(reason: str) -> bool:
    """Whether a schema is refused because no value fits it."""
    return "Unsatisfiable" in reason


def _needed(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema without its optional properties."""
    named, required = schema.get("properties"), schema.get("required") or ()
    if not isinstance(named, Mapping):
        return schema
    return {**schema, "properties": {name: named[name] for name in named if name in required}}


def _parts(schema: Mapping[str, Any], path: str) -> Iterator[tuple[str, Any]]:
    """The schemas inside a schema, each with the path of the field that it is about."""
    for key, between in (("properties", "."), ("patternProperties", ".")):
        named = schema.get(key)
        for name, one in named.items() if isinstance(named, Mapping) else ():
            yield (f"{path}{between}{name}" if path else str(name)), one
    for key in ("items", "additionalProperties"):
        if key in schema:
            yield f"{path}[]" if key == "items" else path, schema[key]
    for key in ("prefixItems", "anyOf", "oneOf", "allOf"):
        several = schema.get(key)
        for number, one in enumerate(several if isinstance(several, (list, tuple)) else ()):
            yield f"{path}[{number}]" if key == "prefixItems" else path, one


def _alone(
    part: Mapping[str, Any], root: Mapping[str, Any], seen: frozenset[str]
) -> dict[str, Any]:
    """A subschema as a schema of its own, in which its references resolve as before.

    A fault at the target of a reference is found there, and is not a fault of this subschema.
    """
    # A reference to another document is refused wherever it stands, also out of use.
    rest = _moved(root, lambda target: target.startswith("#"))
    moved = _moved(part, lambda target: target not in seen)
    return {**{key: moved[key] for key in moved if key != "$defs"}, "$defs": {"root": rest}}


def _moved(value: Any, kept: Callable[[str], bool]) -> Any:
    """A schema whose root has moved, with the references that are kept."""
    if isinstance(value, (list, tuple)):
        return [_moved(one, kept) for one in value]
    if not isinstance(value, Mapping):
        return value
    result = {key: _moved(one, kept) for key, one in value.items()}
    target = result.get("$ref")
    if isinstance(target, str) and not kept(target):
        del result["$ref"]
    elif isinstance(target, str) and target.startswith("#"):
        result["$ref"] = _ROOT + target[1:]
    return result


def _pointed(root: Any, pointer: str) -> Any:
    if not pointer.startswith("#"):
        return None
    for step in filter(None, pointer[1:].split("/")):
        if not isinstance(root, Mapping):
            return None
        root = root.get(step.replace("~1", "/").replace("~0", "~"))
    return root


def _sentence(fault: _Fault) -> str:
    """What is wrong with a subschema, and what to do."""
    reason, part = fault.reason, fault.part
    if not isinstance(part, Mapping):
        return f"{part!r} is not a schema; a schema is a dict, True or False"
    if "regex parse error" in reason:
        pattern = part.get("pattern") or reason.splitlines()[1].strip()
        return f"the pattern {pattern!r} cannot be used ({reason_in(reason)})"
    short = reason_in(reason)
    if short.startswith("Unimplemented keys: "):
        keys = " and ".join(map(repr, json.loads(short.partition(": ")[2])))
        return f"{keys} cannot be followed token by token; leave it out, or say it in other words"
    if "does not exist" in short or "is not present in a registry" in short:
        return f"it refers to {part.get('$ref')!r}, which is not in the schema; put it into $defs"
    if short.startswith("Unknown format: "):
        return f"the format {part.get('format')!r} is not known; leave it out, or give a pattern"
    if short.startswith("oneOf "):
        return "a value may fit several parts of its oneOf; write anyOf"
    if short.startswith("Invalid type: "):
        return f"{part.get('type')!r} is not a type of JSON"
    if short.startswith("Unsatisfiable"):
        return f"no value fits it ({short.partition(': ')[2] or short})"
    return short
