"""A tool call that a limit cut is never run, and is no text of the answer."""

import json

import pytest
from langchain.agents import create_agent
from langchain.agents.structured_output import ToolStrategy
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from pydantic import BaseModel

from llavakit.langchain import ChatLLaVA
from llavakit.testing import FakeBackend
from llavakit.values import Completion, CutCall, ToolCall

WHOLE = ToolCall("c1", "pay", {"amount": 12})
CUT = CutCall("pay", '{"amount": 345')
ANSWER = Completion("Paying.", (WHOLE,), finish_reason="length", cut_calls=(CUT,))


@pytest.fixture
def paid():
    return []


@pytest.fixture
def pay(paid):
    @tool
    def pay(amount: int) -> str:
        "Pay an amount"
        paid.append(amount)
        return "paid"

    return pay


def model(*answers):
    return ChatLLaVA(backend=FakeBackend(list(answers)))


@pytest.mark.parametrize("limit", range(6, 18))
def test_an_agent_pays_what_was_said_or_nothing(limit, pay, paid, demo_backend):
    agent = create_agent(ChatLLaVA(backend=demo_backend, temperature=0, max_tokens=limit), [pay])
    question = {"messages": [("user", "Pay 3456.")]}
    for _ in agent.stream(question, stream_mode="messages"):
        pass
    last = agent.invoke(question)["messages"][-1]
    assert set(paid) <= {3456}
    assert "pay(" not in str(last.content) and "tool_call" not in str(last.content)
    if not paid:
        assert last.invalid_tool_calls and "max_tokens" in last.invalid_tool_calls[0]["error"]


def check(message):
    assert message.content == "Paying."
    assert [(call["name"], call["args"]) for call in message.tool_calls] == [
        ("pay", {"amount": 12})
    ]
    (invalid,) = message.invalid_tool_calls
    assert invalid["name"] == "pay" and invalid["args"] == '{"amount": 345'
    assert "was cut" in invalid["error"] and "max_tokens" in invalid["error"]


@pytest.mark.parametrize("streaming", [False, True])
async def test_it_is_an_invalid_call_with_a_sentence(streaming):
    chat = ChatLLaVA(backend=FakeBackend([ANSWER]), streaming=streaming)
    check(chat.invoke("q"))
    check(await chat.ainvoke("q"))


@pytest.mark.parametrize("arguments", ['{"amount": 345', '{"note": "pay 345', "{", "", '{"a": [1'])
async def test_no_parser_completes_what_streams(arguments):
    answer = Completion("", finish_reason="length", cut_calls=(CutCall("pay", arguments),))
    chat = model(answer)
    whole = None
    for chunk in chat.stream("q"):
        assert not chunk.tool_calls
        whole = chunk if whole is None else whole + chunk
        assert not whole.tool_calls
    (invalid,) = whole.invalid_tool_calls
    assert invalid["name"] == "pay" and invalid["args"].endswith(arguments)
    assert "max_tokens" in invalid["args"]
    chunks = [chunk async for chunk in chat.astream("q")]
    assert not any(chunk.tool_calls for chunk in chunks)


@pytest.mark.filterwarnings("ignore::langchain_core._api.LangChainBetaWarning")
def test_events_of_the_third_version_call_it_invalid():
    message = model(ANSWER).stream_events("q", version="v3").output
    assert [call["args"] for call in message.tool_calls] == [{"amount": 12}]
    assert len(message.invalid_tool_calls) == 1


def test_whole_calls_of_a_stream_are_each_told_once():
    calls = (ToolCall("c1", "pay", {"amount": 1}), ToolCall("c2", "pay", {"amount": 2}))
    chunks = list(model(Completion("", calls)).stream("q"))
    whole = sum(chunks[1:], chunks[0])
    assert [call["args"] for call in whole.tool_calls] == [{"amount": 1}, {"amount": 2}]
    told = [one for chunk in chunks for one in chunk.tool_call_chunks]
    assert [json.loads(one["args"]) for one in told] == [{"amount": 1}, {"amount": 2}]


def test_the_model_reads_next_time_what_it_wrote():
    backend = FakeBackend(["ok"])
    streamed = list(model(ANSWER).stream("q"))
    for answer in (model(ANSWER).invoke("q"), sum(streamed[1:], streamed[0])):
        called = AIMessage(answer.content, invalid_tool_calls=answer.invalid_tool_calls)
        ChatLLaVA(backend=backend).invoke([HumanMessage("q"), called, HumanMessage("Go on.")])
        assert backend.requests[-1].messages[1].text == 'Paying.pay({"amount": 345)'


def test_an_agent_goes_on_after_a_cut_call(pay, paid):
    """LangChain answers an invalid call by a tool's message, which says what was wrong."""
    backend = FakeBackend([Completion("", (), "length", cut_calls=(CUT,)), "I will pay it later."])
    agent = create_agent(ChatLLaVA(backend=backend), [pay])
    first = agent.invoke({"messages": [("user", "Pay 3456.")]})["messages"]
    last = agent.invoke({"messages": [*first, ("user", "Well?")]})["messages"]
    assert last[-1].text == "I will pay it later." and paid == []
    roles = [message.role for message in backend.requests[-1].messages]
    assert roles == ["user", "assistant", "user", "user"]
    assert '{"amount": 345' in backend.requests[-1].messages[1].text


def test_a_schema_by_a_tool_is_asked_for_again_when_its_call_was_cut():
    class Colour(BaseModel):
        """The colour."""

        name: str

    cut = Completion("", (), "length", cut_calls=(CutCall("Colour", '{"name": "re'),))
    whole = Completion("", (ToolCall("c2", "Colour", {"name": "red"}),))
    agent = create_agent(
        ChatLLaVA(backend=FakeBackend([cut, whole])), [], response_format=ToolStrategy(Colour)
    )
    assert agent.invoke({"messages": [("user", "q")]})["structured_response"].name == "red"


@pytest.mark.parametrize("streaming", [False, True])
def test_messages_of_the_newer_notation_are_read_back(streaming):
    backend = FakeBackend([ANSWER, "ok"])
    chat = ChatLLaVA(backend=backend, output_version="v1", streaming=streaming)
    called = chat.invoke("q")
    assert chat.invoke(["q", called, ToolMessage("paid", tool_call_id="c1"), "Go on."]).text == "ok"
    (_, turn, *_) = backend.requests[-1].messages
    assert turn.text == 'Paying.pay({"amount": 345)' and len(turn.tool_calls) == 1
