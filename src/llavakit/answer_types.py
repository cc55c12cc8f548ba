"""Python types as JSON schemas, and the JSON of an answer as a value of its type.

Pydantic does the work; no framework is known here. What schema generators write and constrained
decoding cannot enforce, but the value itself ensures (the uniqueness of a set's items, the many
notations of a decimal), is left to the value.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import operator
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Any, Union, get_args, get_origin

import pydantic
import typing_extensions
from pydantic import BaseModel, TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue

from llavakit.errors import SchemaError

# Imported only by programs that use it: it warns on new versions of Python.
_V1 = "pydantic.v1"

_FORMATS = frozenset(
    ["date-time", "date", "time", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"]
)
"""Formats that constrained decoding enforces; others (``path``, ``binary``) pydantic checks."""

WRAPPED = "value"
"""The property that holds a value where only an object is possible."""


class AnswerType:
    """A type of answers.

    Args:
        kind: a pydantic class, a dataclass, a TypedDict, an ``Enum``, a ``Literal``, a union, a
            list of one of these, a primitive type: whatever pydantic has a schema for.

    Attributes:
        kind: the type as it was given.
        known: the same type as pydantic takes it.
        name: its name, for messages and for tools.
        schema: its JSON schema.

    Raises:
        SchemaError: a JSON schema cannot be made from it.
    """

    def __init__(self, kind: Any) -> None:
        self.kind = kind
        self.name = name_of(kind)
        _check_kind(kind)
        try:
            self.known = _known_to_pydantic(kind, {})
            self._adapter = None if is_v1(kind) else TypeAdapter(self.known)
            self.schema = self._write()
        except Exception as error:  # whatever classes of users raise while their schema is made
            raise _no_schema(kind, error) from error
        if not self.schema:
            raise SchemaError(
                f"{self.name} does not constrain the answer; give a type that does, such as a "
                "pydantic class, a Literal or a list of one."
            )

    def _write(self) -> dict[str, Any]:
        if self._adapter is None:
            return dict(self.kind.schema())
        if _writes_itself(self.kind):
            return dict(self.kind.model_json_schema())
        plain: dict[str, Any] = _plain(self._adapter.json_schema(schema_generator=_Schema))
        return plain

    @property
    def is_object(self) -> bool:
        """Whether answers are JSON objects, as the arguments of tools must be."""
        return is_object(self.schema)

    def value(self, data: Any) -> Any:
        """Return an answer's JSON value as a value of the type.

        Args:
            data: the answer's JSON, parsed.

        Raises:
            ValidationError: it is not a value of this type; validators of the user's class say so.
        """
        # As JSON, so that strict classes take its notation of dates and enums.
        return self.value_of_json(json.dumps(data))

    def value_of_json(self, text: str) -> Any:
        """Parse an answer's text and return its value, as :meth:`value` does."""
        if self._adapter is None:
            return self.kind.parse_raw(text)
        return self._adapter.validate_json(text)


def _writes_itself(kind: Any) -> bool:
    """Whether this is a pydantic class with a schema method of its own."""
    if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
        return False
    # Bound methods differ by the class that they are bound to.
    own, usual = (getattr(one.model_json_schema, "__func__", None) for one in (kind, BaseModel))
    return own is not usual


def name_of(kind: Any) -> str:
    """Return the name of a type, also of one that has no name of its own."""
    config = getattr(kind, "model_config", None)
    title = config.get("title") if isinstance(config, Mapping) else None
    return str(title or getattr(kind, "__name__", None) or kind)


def is_v1(kind: Any) -> bool:
    """Return whether this is a class of pydantic's first version."""
    module = sys.modules.get(_V1)
    return module is not None and isinstance(kind, type) and issubclass(kind, module.BaseModel)


def is_object(schema: Mapping[str, Any]) -> bool:
    """Return whether a schema visibly admits objects and nothing else."""
    seen: set[str] = set()
    inner: Any = schema
    while isinstance(inner, Mapping) and isinstance(inner.get("$ref"), str):
        if inner["$ref"] in seen:
            return False
        seen.add(inner["$ref"])
        inner = _pointed(schema, inner["$ref"])
    return isinstance(inner, Mapping) and (
        inner.get("type") == "object" or ("type" not in inner and "properties" in inner)
    )


def wrapped(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema of an object whose one property (:data:`WRAPPED`) has the schema given."""
    shared = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    inner = {key: value for key, value in schema.items() if key not in shared}
    return {
        "type": "object",
        "properties": {WRAPPED: _moved(inner, f"#/properties/{WRAPPED}")},
        "required": [WRAPPED],
        **_moved(shared, f"#/properties/{WRAPPED}"),
    }


def strictly_closed(schema: Any) -> Any:
    """Return the schema with every object that lists its properties limited to those."""
    if isinstance(schema, list):
        return [strictly_closed(one) for one in schema]
    if not isinstance(schema, Mapping):
        return schema
    result = {key: strictly_closed(value) for key, value in schema.items()}
    if isinstance(result.get("properties"), dict) and result.get("type") == "object":
        result["additionalProperties"] = False
    return result


def _moved(value: Any, root: str) -> Any:
    """A schema that was moved, with its references adjusted."""
    if isinstance(value, list):
        return [_moved(one, root) for one in value]
    if not isinstance(value, Mapping):
        return value
    result = {key: _moved(one, root) for key, one in value.items()}
    target = result.get("$ref")
    if isinstance(target, str) and target.startswith("#"):
        shared = target.startswith(("#/$defs/", "#/definitions/"))
        result["$ref"] = target if shared else root + target[1:]
    return result


def _pointed(root: Any, pointer: str) -> Any:
    if not pointer.startswith("#"):
        return None
    for step in filter(None, pointer[1:].split("/")):
        root = (
            root.get(step.replace("~1", "/").replace("~0", "~"))
            if isinstance(root, Mapping)
            else None
        )
    return root


class _Schema(GenerateJsonSchema):
    """pydantic's schemas without what the value ensures by itself."""

    def set_schema(self, schema: Any) -> JsonSchemaValue:
        return _without(super().set_schema(schema), "uniqueItems")

    def frozenset_schema(self, schema: Any) -> JsonSchemaValue:
        return _without(super().frozenset_schema(schema), "uniqueItems")

    def decimal_schema(self, schema: Any) -> JsonSchemaValue:
        written = super().decimal_schema(schema)
        numbers = [one for one in written.get("anyOf", ()) if one.get("type") == "number"]
        return numbers[0] if numbers else written


def _without(schema: JsonSchemaValue, key: str) -> JsonSchemaValue:
    return {name: value for name, value in schema.items() if name != key}


def _plain(value: Any) -> Any:
    """A schema that pydantic wrote, without formats that only pydantic knows."""
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if not isinstance(value, dict):
        return value
    kept = value.get("format") in _FORMATS or not isinstance(value.get("format"), str)
    return {key: _plain(one) for key, one in value.items() if key != "format" or kept}


def _check_kind(kind: Any) -> None:
    typing_form = get_origin(kind) is not None or isinstance(
        kind, (typing.TypeVar, typing_extensions.TypeAliasType)
    )
    if kind is None or not (isinstance(kind, type) or typing_form or kind is Any):
        what = "None" if kind is None else _described(kind)
        raise SchemaError(
            f"A JSON schema cannot be made from {what}; give a class (pydantic's, a dataclass, a "
            "TypedDict, an Enum), a type such as Literal or list, or a JSON schema."
        )
    if isinstance(kind, type) and issubclass(kind, Enum) and not list(kind):
        raise SchemaError(f"The enum {kind.__name__} has no members to choose from; add one.")


def _described(kind: Any) -> str:
    if inspect.isroutine(kind):
        return f"the function {getattr(kind, '__name__', '')}"
    return f"an object of the type {type(kind).__name__}"


def _no_schema(kind: Any, error: Exception) -> SchemaError:
    for field, annotation in _fields(kind):
        try:
            TypeAdapter(_known_to_pydantic(annotation, {})).json_schema(schema_generator=_Schema)
        except Exception as reason:  # as above
            return SchemaError(
                f"A JSON schema cannot be made from {name_of(kind)}: its field {field!r} is of the "
                f"type {name_of(annotation)}, which JSON does not have ({_first_line(reason)})."
            )
    return SchemaError(
        f"A JSON schema cannot be made from {name_of(kind)} ({_first_line(error)}); give a class "
        "(pydantic's, a dataclass, a TypedDict, an Enum), a type such as Literal or list, or a "
        "JSON schema."
    )


def _fields(kind: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        yield from ((name, field.annotation) for name, field in kind.model_fields.items())
    elif dataclasses.is_dataclass(kind) or typing_extensions.is_typeddict(kind):
        try:
            yield from typing_extensions.get_type_hints(kind, include_extras=True).items()
        except Exception:  # names that cannot be resolved
            return


def _first_line(error: Exception) -> str:
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return line.partition(". ")[0].rstrip(".")


def _known_to_pydantic(kind: Any, made: dict[Any, Any]) -> Any:
    """The type with every TypedDict in it made one that pydantic takes in every Python.

    Pydantic refuses ``typing.TypedDict`` before Python 3.12. LangChain's notation of a field
    (``Annotated[str, default, "description"]``) is understood.
    """
    if typing_extensions.is_typeddict(kind):
        return made[kind] if kind in made else _typed_dict(kind, made)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (None, typing.Literal, typing_extensions.Literal) or not arguments:
        return kind
    if origin in (typing.Annotated, typing_extensions.Annotated):
        return typing.Annotated[(_known_to_pydantic(kind.__origin__, made), *kind.__metadata__)]
    inner = tuple(
        one if isinstance(one, list) else _known_to_pydantic(one, made) for one in arguments
    )
    if all(one is other for one, other in zip(inner, arguments, strict=True)):
        return kind
    if origin in (Union, types.UnionType):
        return functools.reduce(operator.or_, inner)
    return origin[inner]


def _typed_dict(kind: Any, made: dict[Any, Any]) -> Any:
    make: Any = typing_extensions.TypedDict
    result = made[kind] = make(kind.__name__, {})
    required = set(kind.__required_keys__)
    fields: dict[str, Any] = {}
    annotation: Any
    for name, annotation in typing_extensions.get_type_hints(kind, include_extras=True).items():
        qualifier: Any = get_origin(annotation)
        # The class does not know these for annotations that are strings.
        if qualifier is typing_extensions.NotRequired:
            required.discard(name)
            annotation = get_args(annotation)[0]
        elif qualifier is typing_extensions.Required:
            required.add(name)
            annotation = get_args(annotation)[0]
        metadata: tuple[Any, ...] = getattr(annotation, "__metadata__", ())
        if len(metadata) == 2 and isinstance(metadata[1], str):
            default, description = metadata
            annotation = annotation.__origin__
            fields[name] = typing.Annotated[
                _known_to_pydantic(annotation, made), pydantic.Field(description=description)
            ]
            if default is not ...:
                required.discard(name)
        else:
            fields[name] = _known_to_pydantic(annotation, made)
    result.__annotations__ = fields
    result.__required_keys__ = frozenset(required)
    result.__optional_keys__ = frozenset(set(fields) - required)
    result.__doc__ = None if kind.__doc__ == dict.__doc__ else kind.__doc__
    result.__module__ = kind.__module__
    return result
