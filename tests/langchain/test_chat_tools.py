"""Tools and structured output: what reaches the backend and what comes back."""

import pytest
from langchain.agents import create_agent
from langchain_core.exceptions import OutputParserException
from langchain_core.messages import HumanMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.tools import tool
from pydantic import BaseModel, Field, RootModel
from typing_extensions import TypedDict

from llavakit.errors import ParameterError, SchemaError, UnsupportedContentError
from llavakit.langchain import ChatLLaVA
from llavakit.testing import FakeBackend
from llavakit.values import Completion, ToolCall


class Shape(BaseModel):
    """A shape in an image."""

    colour: str = Field(description="its colour")
    sides: int


class Tree(BaseModel):
    name: str
    children: list["Tree"] = []


class ShapeDict(TypedDict):
    """A shape in an image."""

    colour: str
    sides: int


SHAPE = {
    "title": "Shape",
    "type": "object",
    "properties": {"colour": {"type": "string"}, "sides": {"type": "integer"}},
    "required": ["colour", "sides"],
}
JSON = '{"colour": "red", "sides": 3}'
CALL = Completion("", (ToolCall("c1", "Shape", {"colour": "red", "sides": 3}),))


@tool
def count(what: str) -> int:
    """Count things in the image."""
    return 3


def chat(*answers):
    return ChatLLaVA(backend=FakeBackend(answers or ["ok"]))


def request_of(model):
    return model.backend.requests[-1]


def test_tools_of_every_kind_reach_the_backend():
    def plain(x: int) -> int:
        """Doc."""
        return x

    model = chat()
    anthropic = {"name": "looks", "description": "d", "input_schema": {"type": "object"}}
    bedrock = {"toolSpec": {"name": "zoom", "inputSchema": {"json": {"type": "object"}}}}
    model.bind_tools([count, plain, Shape, SHAPE | {"title": "S2"}, anthropic, bedrock]).invoke("q")
    tools = request_of(model).tools
    assert [one.name for one in tools] == ["count", "plain", "Shape", "S2", "looks", "zoom"]
    assert tools[0].description == "Count things in the image."
    assert tools[0].parameters["properties"]["what"]["type"] == "string"


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (None, "auto"),
        ("auto", "auto"),
        ("none", "none"),
        ("any", "required"),
        ("required", "required"),
        (True, "required"),
        (False, "auto"),
        ("count", "count"),
        ({"type": "function", "function": {"name": "count"}}, "count"),
        ({"type": "tool", "name": "count"}, "count"),
        ({"type": "any"}, "required"),
    ],
)
def test_tool_choice(choice, expected):
    model = chat()
    model.bind_tools([count], tool_choice=choice).invoke("q")
    assert request_of(model).tool_choice == expected


def test_a_choice_that_is_not_offered_is_refused():
    with pytest.raises(ParameterError, match="count"):
        chat().bind_tools([count], tool_choice="other")


def test_no_tools_is_no_tools():
    model = chat()
    model.bind_tools([]).invoke("q")
    assert request_of(model).tools == ()


def test_one_call_at_a_time_can_be_asked_for():
    model = chat()
    model.bind_tools([count], parallel_tool_calls=False).invoke("q")
    assert request_of(model).parallel_tool_calls is False


def test_tools_of_other_providers_and_raw_functions_are_refused():
    with pytest.raises(UnsupportedContentError, match="web_search"):
        chat().bind_tools([{"type": "web_search"}])
    with pytest.raises(ParameterError, match="bind_tools"):
        chat().invoke("q", tools=[count])


def test_calls_come_back_whole_and_streamed():
    model = chat(CALL).bind_tools([Shape])
    answer = model.invoke("q")
    assert answer.tool_calls == [
        {"name": "Shape", "args": {"colour": "red", "sides": 3}, "id": "c1", "type": "tool_call"}
    ]
    assert answer.response_metadata["finish_reason"] == "tool_calls"
    whole = None
    for chunk in model.stream("q"):
        whole = chunk if whole is None else whole + chunk
    assert whole.tool_calls == answer.tool_calls


@pytest.mark.parametrize("schema", [Shape, ShapeDict, SHAPE])
@pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
def test_structured_output(schema, method):
    def answers(request):
        if not request.tools:
            return JSON
        (call,) = CALL.tool_calls
        return Completion("", (ToolCall(call.id, request.tools[0].name, call.arguments),))

    model = ChatLLaVA(backend=FakeBackend(answers))
    answer = model.with_structured_output(schema, method=method).invoke("q")
    expected = {"colour": "red", "sides": 3}
    assert answer == (Shape(**expected) if schema is Shape else expected)
    request = request_of(model)
    if method == "function_calling":
        assert request.tool_choice == request.tools[0].name
        assert request.parallel_tool_calls is False
    else:
        assert set(request.params.json_schema["properties"]) == {"colour", "sides"}


def test_json_mode_without_a_schema_is_any_object():
    model = chat(JSON)
    answer = model.with_structured_output(method="json_mode").invoke("q")
    assert answer == {"colour": "red", "sides": 3}
    assert request_of(model).params.json_schema is True


async def test_structured_output_async():
    assert await chat(JSON).with_structured_output(Shape).ainvoke("q") == Shape(
        colour="red", sides=3
    )


def test_structured_output_streams_dicts():
    parts = list(chat(JSON).with_structured_output(SHAPE).stream("q"))
    assert parts[-1] == {"colour": "red", "sides": 3}
    assert len(parts) > 1


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_include_raw_reports_the_error_instead_of_raising(method):
    good = CALL if method == "function_calling" else JSON
    bad = (
        Completion("", (ToolCall("c1", "Shape", {"colour": "red"}),))
        if method == "function_calling"
        else "no JSON"
    )
    model = chat(good, bad).with_structured_output(Shape, method=method, include_raw=True)
    first, second = model.invoke("q"), model.invoke("q")
    assert first["parsed"] == Shape(colour="red", sides=3) and first["parsing_error"] is None
    assert second["parsed"] is None and second["parsing_error"] is not None
    assert second["raw"].response_metadata["model_name"] == "fake"


@pytest.mark.parametrize("tools", [None, 5, "add", {"type": "function"}, len])
def test_tools_that_are_no_list_are_refused(tools):
    with pytest.raises(ParameterError, match="Tools are given in a list"):
        chat("x").bind_tools(tools)


@pytest.mark.parametrize("tool", [{"type": "function"}, {"type": "function", "function": {}}])
def test_a_tool_without_its_function_is_refused(tool):
    with pytest.raises(ParameterError, match="A tool must be"):
        chat("x").invoke("q", tools=[tool])


CUT = {
    "json_schema": Completion('{"colour": "red", "sides": 12', finish_reason="length"),
    "json_mode": Completion('{"colour": "red", "sides": 12', finish_reason="length"),
    "function_calling": Completion("", finish_reason="length"),
}


@pytest.mark.parametrize("method", CUT)
@pytest.mark.parametrize("schema", [Shape, SHAPE])
async def test_an_answer_that_was_cut_is_an_error_and_no_wrong_object(method, schema):
    """LangChain's parsers complete what is cut: 12 of 120 sides would be an answer."""
    model = chat(CUT[method]).with_structured_output(schema, method=method)
    with pytest.raises(OutputParserException, match="raise max_tokens"):
        model.invoke("q")
    with pytest.raises(OutputParserException, match="raise max_tokens"):
        await model.ainvoke("q")
    with pytest.raises(OutputParserException, match="raise max_tokens"):
        list(model.stream("q"))
    raw = chat(CUT[method]).with_structured_output(schema, method=method, include_raw=True)
    found = raw.invoke("q")
    assert found["parsed"] is None and "raise max_tokens" in str(found["parsing_error"])
    assert found["raw"].response_metadata["finish_reason"] == "length"


def test_an_object_that_ends_with_the_last_token_is_whole():
    whole = Completion(JSON, finish_reason="length")
    assert chat(whole).with_structured_output(SHAPE).invoke("q") == {"colour": "red", "sides": 3}


@pytest.mark.parametrize("schema", [RootModel[int], {"title": "Sides", "type": "integer"}])
async def test_a_number_that_was_cut_is_an_error_and_no_wrong_number(schema):
    """22 may be the beginning of 2284; where the answer ended by itself, it is 22."""
    cut = Completion("22", finish_reason="length")
    model = chat("22", cut, cut).with_structured_output(schema)
    whole = model.invoke("q")
    assert getattr(whole, "root", whole) == 22
    with pytest.raises(OutputParserException, match="raise max_tokens"):
        model.invoke("q")
    with pytest.raises(OutputParserException, match="raise max_tokens"):
        await model.ainvoke("q")


def test_recursive_schemas_keep_their_references():
    model = chat('{"name": "a", "children": [{"name": "b"}]}')
    answer = model.with_structured_output(Tree).invoke("q")
    assert answer.children[0].name == "b"
    assert "$defs" in request_of(model).params.json_schema


def test_strict_closes_objects():
    model = chat(JSON)
    model.with_structured_output(Shape, strict=True).invoke("q")
    assert request_of(model).params.json_schema["additionalProperties"] is False


def test_schemas_without_a_title_and_tools_as_schemas():
    model = chat(JSON)
    untitled = {key: value for key, value in SHAPE.items() if key != "title"}
    assert model.with_structured_output(untitled).invoke("q")["sides"] == 3
    as_tool = {"type": "function", "function": {"name": "Shape", "parameters": untitled}}
    model.with_structured_output(as_tool).invoke("q")
    assert request_of(model).params.json_schema["properties"] == SHAPE["properties"]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"schema": Shape, "method": "magic"}, ParameterError),
        ({"schema": None}, SchemaError),
        ({"schema": Shape, "method": "json_mode", "strict": True}, ParameterError),
        ({"schema": 3}, SchemaError),
    ],
)
def test_what_makes_no_schema_is_told(arguments, error):
    with pytest.raises(error):
        chat().with_structured_output(**arguments)


@pytest.mark.parametrize(
    ("response_format", "expected"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, True),
        ({"type": "json_schema", "json_schema": {"name": "S", "schema": SHAPE}}, SHAPE),
    ],
)
def test_response_format(response_format, expected):
    model = chat()
    model.invoke("q", response_format=response_format)
    assert request_of(model).params.json_schema == expected


def test_an_unknown_response_format_is_refused():
    with pytest.raises(ParameterError, match="response_format"):
        chat().invoke("q", response_format=Shape)


def test_a_grammar_is_passed_on():
    model = chat()
    model.invoke("q", grammar="(yes|no)")
    assert request_of(model).params.grammar == "(yes|no)"


def test_an_agent_calls_its_tool_and_answers(pil):
    calls = [Completion("", (ToolCall("c1", "count", {"what": "circles"}),)), "three"]
    model = chat(*calls)
    agent = create_agent(model, [count])
    question = HumanMessage(["how many?", {"type": "image", "image": pil}])
    answer = agent.invoke({"messages": [question]})["messages"]
    assert [message.type for message in answer] == ["human", "ai", "tool", "ai"]
    assert answer[-1].content == "three"
    last = request_of(model)
    assert (last.messages[-1].role, last.messages[-1].text) == ("tool", "3")
    assert len(last.messages[0].images) == 1


def test_an_agent_gives_structured_output():
    model = chat(JSON)
    agent = create_agent(model, [], response_format=Shape)
    result = agent.invoke({"messages": [HumanMessage("q")]})
    assert result["structured_response"] == Shape(colour="red", sides=3)
    assert request_of(model).params.json_schema["required"] == ["colour", "sides"]


def test_a_chain_of_prompt_and_parser():
    assert (chat("a circle") | StrOutputParser()).invoke("q") == "a circle"
