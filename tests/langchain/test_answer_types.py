"""Structured output of every kind of type: a value of it by every method, or a fitting error."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Annotated, Literal, NotRequired, TypedDict

import pytest
from langchain_core.exceptions import OutputParserException
from langchain_core.messages import HumanMessage
from pydantic import BaseModel, field_validator

from llavakit.errors import SchemaError
from llavakit.langchain import ChatLLaVA
from llavakit.testing import FakeBackend
from llavakit.values import Completion, ToolCall
from tests.langchain.test_demo_model import picture


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Circle(BaseModel):
    kind: Literal["circle"]
    colour: Colour


class Square(BaseModel):
    kind: Literal["square"]
    colour: Colour


class Seen(TypedDict):
    """What is seen."""

    colour: Annotated[Colour, ..., "of the shape"]
    where: NotRequired[str]


@dataclass
class Drawn:
    colour: Colour


class Even(BaseModel):
    """Rules that a schema does not tell."""

    sides: int

    @field_validator("sides")
    @classmethod
    def _even(cls, sides: int) -> int:
        if sides % 2:
            raise ValueError("odd")
        return sides


RED = Colour.RED
CASES = [
    (Colour, '"red"', RED),
    (Literal["red", "blue"], '"blue"', "blue"),
    (Circle | Square, '{"kind":"circle","colour":"red"}', Circle(kind="circle", colour=RED)),
    (Circle | None, "null", None),
    (int, "3", 3),
    (str, '"red"', "red"),
    (bool, "false", False),
    (list[Drawn], '[{"colour":"red"}]', [Drawn(RED)]),
    (Seen, '{"colour":"red"}', {"colour": RED}),
    (Drawn, '{"colour":"red"}', Drawn(RED)),
    ({"title": "Shade", "enum": ["red", "blue"]}, '"red"', "red"),
    ({"type": "array", "items": {"type": "integer"}}, "[1,2]", [1, 2]),
]
METHODS = ["json_schema", "function_calling", "json_mode"]
named = pytest.mark.parametrize(("schema", "text", "value"), CASES, ids=lambda one: str(one)[:30])


class Answering(FakeBackend):
    """Gives JSON of the schema, as text or as the call that is asked for."""

    def __init__(self, text: str) -> None:
        super().__init__(self._answered)
        self.text = text

    def _answered(self, request):
        if not request.tools:
            return self.text
        import json

        data = json.loads(self.text)
        (tool,) = request.tools
        if "value" in tool.parameters.get("properties", {}):
            data = {"value": data}
        return Completion("", (ToolCall("c1", tool.name, data),))


@named
@pytest.mark.parametrize("method", METHODS)
async def test_the_answer_is_a_value_of_the_type(schema, text, value, method):
    model = ChatLLaVA(backend=Answering(text)).with_structured_output(schema, method=method)
    for found in (
        model.invoke("q"),
        await model.ainvoke("q"),
        list(model.stream("q"))[-1],
        [one async for one in model.astream("q")][-1],
    ):
        assert found == value and type(found) is type(value)
    raw = ChatLLaVA(backend=Answering(text)).with_structured_output(
        schema, method=method, include_raw=True
    )
    assert raw.invoke("q")["parsed"] == value


@named
def test_every_token_is_held_to_the_type(schema, text, value, demo_backend):
    model = ChatLLaVA(backend=demo_backend, temperature=2.0, seed=1, max_tokens=200)
    for method in ("json_schema", "function_calling"):
        wanted = model.with_structured_output(schema, method=method, include_raw=True).invoke("q")
        cut = wanted["raw"].response_metadata["finish_reason"] == "length"
        assert (wanted["parsing_error"] is not None) == cut


def test_a_member_of_an_enum_is_what_the_picture_shows(demo_backend):
    model = ChatLLaVA(backend=demo_backend, model="demo", temperature=0)
    image = {"type": "image", "image": picture("ellipse", (220, 30, 30))}
    asked = [HumanMessage([image, {"type": "text", "text": "What colour is the circle?"}])]
    assert model.with_structured_output(Colour).invoke(asked) is Colour.RED
    assert model.with_structured_output(Literal["red", "blue"]).invoke(asked) == "red"


@pytest.mark.parametrize("method", METHODS)
async def test_what_a_classs_own_rules_refuse_is_an_error_of_the_parser(method):
    model = ChatLLaVA(backend=Answering('{"sides": 3}'))
    odd = model.with_structured_output(Even, method=method)
    with pytest.raises(OutputParserException, match=r"(?s)Failed to parse Even.*odd"):
        odd.invoke("q")
    with pytest.raises(OutputParserException, match="odd"):
        await odd.ainvoke("q")
    with pytest.raises(OutputParserException, match="odd"):
        list(odd.stream("q"))
    with pytest.raises(OutputParserException, match="odd"):
        [one async for one in odd.astream("q")]
    raw = model.with_structured_output(Even, method=method, include_raw=True).invoke("q")
    assert raw["parsed"] is None and isinstance(raw["parsing_error"], OutputParserException)


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
@pytest.mark.parametrize("schema", [len, lambda a: a, 5, "Colour", RED, [Colour], object, None, {}])
def test_what_makes_no_schema_is_told(schema, method):
    with pytest.raises(SchemaError) as caught:
        ChatLLaVA(backend=Answering("1")).with_structured_output(schema, method=method)
    assert "\n" not in str(caught.value)


def test_the_field_of_a_schema_that_cannot_be_held_to_is_named(demo_backend):
    schema = {
        "title": "P",
        "type": "object",
        "properties": {"code": {"type": "string", "pattern": "^(?!X)[A-Z]{3}$"}},
        "required": ["code"],
    }
    model = ChatLLaVA(backend=demo_backend)
    with pytest.raises(SchemaError, match="'P', field 'code': the pattern"):
        model.with_structured_output(schema).invoke("hi")
    with pytest.raises(SchemaError, match="tool 'P', field 'code': the pattern"):
        model.with_structured_output(schema, method="function_calling").invoke("hi")


def test_objects_without_classes_grow_in_a_stream_and_values_come_once():
    told = list(
        ChatLLaVA(backend=Answering('{"colour": "red", "where": "left"}'))
        .with_structured_output(Seen)
        .stream("q")
    )
    assert len(told) > 1 and told[-1] == {"colour": RED, "where": "left"}
    assert list(ChatLLaVA(backend=Answering("12 ")).with_structured_output(int).stream("q")) == [12]
