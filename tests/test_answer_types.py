"""Types as schemas, and answers as their values; what has no schema is told in one sentence."""

from __future__ import annotations

import datetime
import enum
import functools
import ipaddress
import typing
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, Optional, TypedDict, Union

import pydantic
import pytest

from llavakit.answer_types import AnswerType, is_object, strictly_closed, wrapped
from llavakit.errors import SchemaError


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Size(enum.IntEnum):
    SMALL = 1
    LARGE = 2


class Cat(pydantic.BaseModel):
    lives: int


class Dog(pydantic.BaseModel):
    tricks: list[str]


class Told(TypedDict):
    """What is told."""

    colour: Colour
    pet: Cat
    when: Annotated[datetime.date | None, None, "the day"]
    note: NotRequired[str]


class Chain(TypedDict):
    next: Chain | None


@dataclass
class Box:
    colour: Colour
    sides: int = 4


class Bill(pydantic.BaseModel):
    total: Decimal
    file: Path
    tags: set[str]


RED = Colour.RED
VALUES = [
    (Colour, "red", RED),
    (Size, 2, Size.LARGE),
    (Literal["a", "b"], "b", "b"),
    (Cat | Dog, {"tricks": ["sit"]}, Dog(tricks=["sit"])),
    (Union[Cat, Dog], {"lives": 7}, Cat(lives=7)),  # noqa: UP007  # another class than Cat | Dog
    (Optional[Cat], None, None),  # noqa: UP045
    (Colour | None, "red", RED),
    (int, 3, 3),
    (str, "a", "a"),
    (bool, True, True),
    (float, 2, 2.0),
    (list[Cat], [{"lives": 1}], [Cat(lives=1)]),
    (dict[str, Cat], {"Tom": {"lives": 9}}, {"Tom": Cat(lives=9)}),
    (tuple[int, str], [1, "a"], (1, "a")),
    (set[Colour], ["red", "red"], {RED}),
    (datetime.date, "2024-02-29", datetime.date(2024, 2, 29)),
    (uuid.UUID, str(uuid.UUID(int=7)), uuid.UUID(int=7)),
    (ipaddress.IPv4Address, "1.2.3.4", ipaddress.IPv4Address("1.2.3.4")),
    (Box, {"colour": "red"}, Box(RED)),
    (Told, {"colour": "red", "pet": {"lives": 1}}, {"colour": RED, "pet": Cat(lives=1)}),
    (list[Chain], [{"next": {"next": None}}], [{"next": {"next": None}}]),
    (Bill, {"total": 1.5, "file": "a", "tags": ["x", "x"]}, None),
]


@pytest.mark.parametrize(("kind", "data", "value"), VALUES, ids=lambda one: str(one)[:30])
def test_a_value_is_of_its_type(kind, data, value):
    found = AnswerType(kind).value(data)
    if kind is Bill:
        value = Bill(total=Decimal("1.5"), file=Path("a"), tags={"x"})
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize("kind", [kind for kind, *_ in VALUES], ids=lambda one: str(one)[:30])
def test_every_schema_can_be_held_to(kind, demo_backend):
    """Nothing that only pydantic knows is in it."""
    from llavakit.values import SamplingParams

    for schema in (AnswerType(kind).schema, wrapped(AnswerType(kind).schema)):
        params = SamplingParams(temperature=0, max_tokens=1, json_schema=schema)
        demo_backend.generate("hello", params)


def test_langchains_notation_of_a_field_is_understood():
    schema = AnswerType(Told).schema
    assert schema["description"] == "What is told."
    assert schema["properties"]["when"]["description"] == "the day"
    assert schema["required"] == ["colour", "pet"]


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (None, "from None"),
        (5, "of the type int"),
        ("Cat", "of the type str"),
        (len, "the function len"),
        (lambda lives: lives, "the function <lambda>"),
        (functools.partial(int, 5), "of the type partial"),
        (Cat(lives=1), "of the type Cat"),
        (RED, "of the type Colour"),
        ([Cat], "of the type list"),
        ({"a": 1}, "of the type dict"),
        (object(), "of the type object"),
        (object, "does not constrain"),
        (Any, "does not constrain"),
        (enum.Enum, "no members"),
        (Exception, "from Exception"),
        (type, "from type"),
        (Callable[[int], int], "from Callable"),
    ],
)
def test_what_has_no_schema_is_told_in_one_sentence(kind, words):
    with pytest.raises(SchemaError, match=words) as caught:
        AnswerType(kind)
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")


def test_the_field_that_has_no_schema_is_named():
    class Job(pydantic.BaseModel):
        name: str
        run: typing.Callable[[int], int]

    @dataclass
    class Task:
        name: str
        error: Exception

    with pytest.raises(SchemaError, match="Job: its field 'run' is of the type Callable"):
        AnswerType(Job)
    with pytest.raises(SchemaError, match="Task: its field 'error' is of the type Exception"):
        AnswerType(Task)


def test_a_class_of_pydantics_first_version():
    from pydantic import v1

    class Old(v1.BaseModel):
        lives: int

    assert AnswerType(Old).value({"lives": 3}) == Old(lives=3)
    assert AnswerType(Old).is_object


def test_a_class_that_writes_its_schema_itself():
    class Own(pydantic.BaseModel):
        lives: int

        @classmethod
        def model_json_schema(cls):
            return {"type": "object", "properties": {"lives": {"enum": [9]}}}

    assert AnswerType(Own).schema["properties"] == {"lives": {"enum": [9]}}


def test_a_schema_moves_into_an_object_with_its_references():
    assert wrapped({"anyOf": [{"type": "string"}, {"items": {"$ref": "#"}}]})["properties"] == {
        "value": {"anyOf": [{"type": "string"}, {"items": {"$ref": "#/properties/value"}}]}
    }
    moved = wrapped(AnswerType(list[Cat]).schema)
    assert moved["properties"]["value"]["items"] == {"$ref": "#/$defs/Cat"}
    assert "Cat" in moved["$defs"]


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"type": "object"}, True),
        ({"properties": {}}, True),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"type": "object"}}}, True),
        ({"$ref": "#"}, False),
        ({"$ref": "#/$defs/b"}, False),
        ({"enum": [1]}, False),
        ({"anyOf": [{"type": "object"}]}, False),
    ],
)
def test_whether_a_schema_is_of_objects(schema, expected):
    assert is_object(schema) is expected


def test_strict_closes_every_object():
    closed = strictly_closed(AnswerType(list[Cat]).schema)
    assert closed["$defs"]["Cat"]["additionalProperties"] is False
