"""Conversations that end with an answer: two agents in a row, an agent's structured response."""

from __future__ import annotations

import warnings

import pytest
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langgraph.graph import END, START, MessagesState, StateGraph
from pydantic import BaseModel

from llavakit.errors import MessageError, ParameterError
from llavakit.langchain import ChatLLaVA
from llavakit.testing import FakeBackend

HI, HELLO = HumanMessage("hello"), AIMessage("Hello!")


class Answer(BaseModel):
    """The answer"""

    colour: str


@pytest.fixture
def model(demo_backend):
    return ChatLLaVA(backend=demo_backend, model="demo", temperature=0, max_tokens=40)


@pytest.mark.parametrize(
    "messages",
    [
        [HI, HELLO],
        [HI, HELLO, AIMessage("How can I help?")],
        [HELLO],
        [HELLO, HI],
        [SystemMessage("Name a colour.")],
        [HI, HI],
    ],
)
async def test_an_answer_follows_whoever_spoke_last(model, messages):
    answer = model.invoke(messages)
    assert answer.text and answer.usage_metadata["input_tokens"] > 0
    assert (await model.ainvoke(messages)).text == answer.text
    assert model.get_num_tokens_from_messages(messages) == answer.usage_metadata["input_tokens"]


def test_two_agents_in_a_row(model, tmp_path):
    graph = StateGraph(MessagesState)
    for name in ("looker", "checker"):
        graph.add_node(name, create_agent(model, [], name=name, system_prompt=f"You are {name}."))
    graph.add_edge(START, "looker")
    graph.add_edge("looker", "checker")
    graph.add_edge("checker", END)
    messages = graph.compile().invoke({"messages": [HI]})["messages"]
    assert [message.type for message in messages] == ["human", "ai", "ai"]


def test_an_agent_asks_for_its_structured_response_behind_its_answer(model):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from langgraph.prebuilt import create_react_agent

        agent = create_react_agent(model, [], response_format=Answer)
        found = agent.invoke({"messages": [HI]})["structured_response"]
    assert isinstance(found, Answer)


def test_an_answer_goes_on_with_words_that_are_there(model):
    begun = [HI, AIMessage("Hello! How can")]
    whole = model.invoke([HI]).text
    assert "Hello! How can" + model.invoke(begun, continue_final_message=True).text == whole
    bound = model.bind(continue_final_message=True, add_generation_prompt=False)
    assert "Hello! How can" + "".join(c.text for c in bound.stream(begun)) == whole


@pytest.mark.parametrize(
    ("messages", "options", "error", "words"),
    [
        ([HI, HELLO], {"add_generation_prompt": True}, ParameterError, "contradict"),
        ([HI], {}, MessageError, "end with an assistant message"),
    ],
)
def test_what_cannot_be_continued_is_told_before_anything_runs(messages, options, error, words):
    fake = FakeBackend()
    with pytest.raises(error, match=words):
        ChatLLaVA(backend=fake).invoke(messages, continue_final_message=True, **options)
    assert fake.requests == []
