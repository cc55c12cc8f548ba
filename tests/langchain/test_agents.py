"""LangChain's agents on the bundled model: loops that end, and objects that are valid."""

import pytest
from langchain.agents import create_agent
from langchain.agents.structured_output import ProviderStrategy, ToolStrategy
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage, trim_messages
from langchain_core.tools import tool
from PIL import Image as PILImage
from PIL import ImageDraw
from pydantic import BaseModel

from llavakit.errors import ContextLengthError
from llavakit.langchain import ChatLLaVA


class Person(BaseModel):
    """What a sentence tells of somebody."""

    name: str
    age: int


@tool
def multiply(a: int, b: int) -> int:
    """Multiply two numbers."""
    return a * b


@tool
def get_weather(city: str) -> str:
    """Get the weather of a city."""
    return {"Paris": "sunny", "London": "rainy"}[city]


@pytest.fixture(scope="module")
def model(demo_backend):
    return ChatLLaVA(model="demo", temperature=0)


def circle(colour: str) -> PILImage.Image:
    image = PILImage.new("RGB", (200, 200), "white")
    ImageDraw.Draw(image).ellipse((50, 50, 150, 150), fill=colour)
    return image


@pytest.mark.parametrize(
    ("question", "called", "result"),
    [
        ("Multiply 6 and 7.", ("multiply", {"a": 6, "b": 7}), "42"),
        ("What is the weather in London?", ("get_weather", {"city": "London"}), "rainy"),
        ("What is the weather in Paris?", ("get_weather", {"city": "Paris"}), "sunny"),
    ],
)
async def test_an_agent_calls_the_right_tool_and_tells_its_result(model, question, called, result):
    agent = create_agent(model, [multiply, get_weather])
    asked = {"messages": [HumanMessage(question)]}
    for state in (agent.invoke(asked), await agent.ainvoke(asked)):
        _, call, told, answer = state["messages"]
        (made,) = call.tool_calls
        assert (made["name"], made["args"]) == called
        assert isinstance(told, ToolMessage) and told.content == result
        assert result in answer.text and not answer.tool_calls


@pytest.mark.parametrize(
    ("strategy", "told"),
    [
        (None, "Ada is 36 years old."),
        (ProviderStrategy, "Ada is 36 years old."),
        (ToolStrategy, "Call Person with name Ada and age 36."),
    ],
)
def test_an_agent_with_tools_ends_with_the_right_object(model, strategy, told):
    wanted = Person if strategy is None else strategy(Person)
    agent = create_agent(model, [multiply, get_weather], response_format=wanted)
    state = agent.invoke({"messages": [HumanMessage(told)]})
    assert state["structured_response"] == Person(name="Ada", age=36)


def test_the_object_holds_what_was_said(model):
    agent = create_agent(model, [], response_format=Person)
    state = agent.invoke({"messages": [HumanMessage("Ada is 36 years old.")]})
    assert state["structured_response"] == Person(name="Ada", age=36)


def test_a_tool_may_show_a_picture(model):
    shown = circle("blue")

    @tool(response_format="content_and_artifact")
    def take_picture() -> tuple[list, PILImage.Image]:
        """Take an image."""
        return [{"type": "image", "image": shown}], shown

    call = {"name": "take_picture", "args": {}, "id": "1", "type": "tool_call"}
    told = take_picture.invoke(call)
    answer = model.invoke(
        [
            HumanMessage("Take a picture."),
            AIMessage("", tool_calls=[call]),
            told,
            HumanMessage("What colour is the circle?"),
        ]
    )
    assert "blue" in answer.text


def test_a_conversation_that_is_too_long_is_told_with_numbers_and_can_be_trimmed(model):
    picture = HumanMessage([{"type": "image", "image": circle("red")}, "What colour is it?"])
    history = [picture] * 60
    with pytest.raises(ContextLengthError) as refused:
        model.invoke(history)
    assert refused.value.context_length == 4096
    assert refused.value.prompt_tokens == model.get_num_tokens_from_messages(history)
    trimmed = trim_messages(
        history, max_tokens=1000, token_counter=model, strategy="last", start_on="human"
    )
    assert 5 < len(trimmed) < 60
    assert model.get_num_tokens_from_messages(trimmed) <= 1000
    assert "red" in model.invoke([*trimmed[-2:], HumanMessage("What colour is the circle?")]).text
