"""Random JSON schemas of the kinds that people write; a seed gives the same one every time."""

from __future__ import annotations

import random
from typing import Any

NAMES = ["name", "age", "tags", "größe", 'q"uote', "kind", "x"]
CONSTANTS: list[Any] = ["red", "größe", 'a"b\\c', "", 0, -7, 2.5, True, None, [1, "x"], {"k": 1}]


class SchemaMaker:
    """Makes one schema. Most of it is bounded, so that random weights come to an end."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._definitions: dict[str, Any] = {}

    def make(self) -> dict[str, Any]:
        """A whole schema; the root is an object, most of the time."""
        kind = self._object if self._random.random() < 0.7 else self._any
        schema = kind(2)
        return {**schema, "$defs": self._definitions} if self._definitions else schema

    def _any(self, depth: int) -> dict[str, Any]:
        flat = [self._string, self._integer, self._number, self._plain, self._enum, self._const]
        nested = [self._object, self._array, self._choice, self._reference, self._several_types]
        kinds = flat + nested if depth else flat
        return self._random.choice(kinds)(depth - 1)

    def _string(self, _: int) -> dict[str, Any]:
        shortest = self._random.randint(0, 3)
        return self._random.choice(
            [
                {"type": "string", "maxLength": self._random.randint(0, 6)},
                {"type": "string", "minLength": shortest, "maxLength": shortest + 3},
                {"type": "string", "pattern": "^[a-z]{1,5}$"},
                {"type": "string", "pattern": r"^\d{3}-\d{2}/[A-F]$"},
                {"type": "string", "pattern": "^(yes|no)$"},
            ]
        )

    def _integer(self, _: int) -> dict[str, Any]:
        low = self._random.randint(-300, 300)
        return self._random.choice(
            [
                {"type": "integer", "minimum": low, "maximum": low + self._random.randint(0, 500)},
                {"type": "integer", "exclusiveMinimum": low, "exclusiveMaximum": low + 9},
                {"type": "integer"},
            ]
        )

    def _number(self, _: int) -> dict[str, Any]:
        low = self._random.randint(-20, 20) / 4
        return self._random.choice(
            [
                {"type": "number", "minimum": low, "maximum": low + 3},
                {"type": "number", "exclusiveMinimum": low, "exclusiveMaximum": low + 1.5},
                {"type": "number"},
            ]
        )

    def _plain(self, _: int) -> dict[str, Any]:
        return {"type": self._random.choice(["boolean", "null"])}

    def _enum(self, _: int) -> dict[str, Any]:
        return {"enum": self._random.sample(CONSTANTS, self._random.randint(1, 4))}

    def _const(self, _: int) -> dict[str, Any]:
        return {"const": self._random.choice(CONSTANTS)}

    def _several_types(self, _: int) -> dict[str, Any]:
        return {"type": ["integer", "null", "boolean"]}

    def _object(self, depth: int) -> dict[str, Any]:
        names = self._random.sample(NAMES, self._random.randint(1, 4))
        schema: dict[str, Any] = {
            "type": "object",
            "properties": {name: self._any(depth) for name in names},
            "required": [name for name in names if self._random.random() < 0.6],
        }
        if self._random.random() < 0.3:
            schema["additionalProperties"] = False
        return schema

    def _array(self, depth: int) -> dict[str, Any]:
        fewest = self._random.randint(0, 2)
        most = fewest + self._random.randint(0, 2)
        return {
            "type": "array",
            "items": self._any(depth),
            "minItems": fewest,
            "maxItems": most,
        }

    def _choice(self, depth: int) -> dict[str, Any]:
        return {"anyOf": [self._any(depth) for _ in range(self._random.randint(1, 3))]}

    def _reference(self, depth: int) -> dict[str, Any]:
        name = f"D{len(self._definitions)}"
        self._definitions[name] = {}  # its name is taken before its parts take theirs
        if self._random.random() < 0.3:
            self._definitions[name] = {
                "type": "object",
                "properties": {"v": self._any(0), "next": {"$ref": f"#/$defs/{name}"}},
                "required": ["v"],
            }
        else:
            self._definitions[name] = self._any(depth)
        return {"$ref": f"#/$defs/{name}"}
