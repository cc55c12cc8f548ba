"""Conversations that end with an answer, and structured answers of any type."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Literal

import pytest
from llama_index.core.agent.workflow import AgentWorkflow, FunctionAgent
from llama_index.core.base.llms.types import ImageBlock, TextBlock
from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import PromptTemplate
from pydantic import BaseModel, ValidationError, field_validator

from llavakit.errors import MessageError, ParameterError, SchemaError
from llavakit.llama_index import LLaVA
from llavakit.testing import FakeBackend
from llavakit.values import Completion, ToolCall

ASK = PromptTemplate("hello")


def said(role: str, text: str) -> ChatMessage:
    return ChatMessage(role=role, content=text)


HI, HELLO = said("user", "hello"), said("assistant", "Hello!")


@pytest.fixture
def llm(demo_backend):
    return LLaVA(model="demo", temperature=0, max_tokens=40)


@pytest.mark.parametrize(
    "messages",
    [[HI, HELLO], [HI, HELLO, HELLO], [HELLO], [HELLO, HI], [said("system", "Name a colour.")]],
)
async def test_an_answer_follows_whoever_spoke_last(llm, messages):
    answer = llm.chat(messages).message.content
    assert answer
    assert (await llm.achat(messages)).message.content == answer


def test_an_answer_goes_on_with_words_that_are_there(llm):
    begun = [HI, said("assistant", "Hello! How can")]
    whole = llm.chat([HI]).message.content
    options = {"continue_final_message": True, "add_generation_prompt": False}
    assert "Hello! How can" + llm.chat(begun, **options).message.content == whole
    *_, last = llm.stream_chat(begun, continue_final_message=True)
    assert "Hello! How can" + last.message.content == whole


def test_what_cannot_be_continued_is_told_before_anything_runs():
    fake = FakeBackend()
    with pytest.raises(ParameterError, match="contradict"):
        LLaVA(backend=fake).chat(
            [HI, HELLO], continue_final_message=True, add_generation_prompt=True
        )
    with pytest.raises(MessageError, match="end with an assistant message"):
        LLaVA(backend=fake).chat([HI], continue_final_message=True)
    assert fake.requests == []


@pytest.mark.filterwarnings("ignore")
async def test_a_workflow_hands_one_agents_answer_to_the_next():
    def handing(request):
        if any(tool.name == "handoff" for tool in request.tools) and len(request.messages) < 4:
            call = ToolCall("c1", "handoff", {"to_agent": "checker", "reason": "check it"})
            return Completion("", (call,))
        return "It is red."

    fake = FakeBackend(handing)
    agents = [
        FunctionAgent(name="looker", description="looks", llm=LLaVA(backend=fake), tools=[]),
        FunctionAgent(name="checker", description="checks", llm=LLaVA(backend=fake), tools=[]),
    ]
    workflow = AgentWorkflow(agents=agents, root_agent="looker")
    answer = await workflow.run(chat_history=[HI, HELLO], user_msg=None)
    assert "red" in str(answer)


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Cat(BaseModel):
    lives: int


class Dog(BaseModel):
    tricks: list[str]


@dataclass
class Box:
    colour: Colour


TYPES = [
    (Colour, '"red"', Colour.RED),
    (Literal["a", "b"], '"b"', "b"),
    (Cat | Dog, '{"tricks":["sit"]}', Dog(tricks=["sit"])),
    (Cat | None, "null", None),
    (int, "3", 3),
    (list[Cat], '[{"lives":9}]', [Cat(lives=9)]),
    (Box, '{"colour":"blue"}', Box(Colour.BLUE)),
]


def scripted(text: str) -> FakeBackend:
    import json

    def answered(request):
        if not request.tools:
            return text
        return Completion("", (ToolCall("c", request.tools[0].name, {"value": json.loads(text)}),))

    return FakeBackend(answered)


@pytest.mark.parametrize(("kind", "text", "value"), TYPES, ids=lambda one: str(one)[:30])
@pytest.mark.parametrize("mode", ["default", "function"])
async def test_a_prediction_is_a_value_of_its_type(kind, text, value, mode):
    llm = LLaVA(backend=scripted(text), pydantic_program_mode=mode)
    found = llm.structured_predict(kind, ASK)
    assert found == value and type(found) is type(value)
    assert await llm.astructured_predict(kind, ASK) == value
    assert list(llm.stream_structured_predict(kind, ASK))[-1] == value
    stream = await llm.astream_structured_predict(kind, ASK)
    assert [one async for one in stream][-1] == value


@pytest.mark.filterwarnings("ignore::pydantic.PydanticDeprecatedSince20")
@pytest.mark.parametrize(("kind", "text", "value"), TYPES, ids=lambda one: str(one)[:30])
async def test_a_structured_llm_answers_with_values_of_its_type(kind, text, value):
    llm = LLaVA(backend=scripted(text)).as_structured_llm(kind)
    answer = llm.chat([HI])
    assert answer.raw == value and answer.message.content == text
    assert (await llm.achat([HI])).raw == value
    assert list(llm.stream_chat([HI]))[-1].raw == value
    assert [one async for one in await llm.astream_chat([HI])][-1].raw == value
    assert llm.complete("hello").text == text


def test_a_member_of_an_enum_is_what_the_picture_shows(llm, case):
    asked = ChatMessage(
        blocks=[ImageBlock(path=case.path), TextBlock(text="What colour is the circle?")]
    )
    assert llm.as_structured_llm(Colour).chat([asked]).raw is Colour.RED


@pytest.mark.parametrize("kind", [None, 5, "Cat", len, Cat(lives=1), [Cat], object, Exception])
def test_what_makes_no_schema_is_told(kind, llm):
    with pytest.raises(SchemaError):
        llm.structured_predict(kind, ASK)
    with pytest.raises(SchemaError):
        llm.as_structured_llm(kind)


def test_what_a_classs_own_rules_refuse_is_pydantics_error():
    class Even(BaseModel):
        sides: int

        @field_validator("sides")
        @classmethod
        def _even(cls, sides: int) -> int:
            raise ValueError("odd")

    with pytest.raises(ValidationError, match="odd"):
        LLaVA(backend=FakeBackend(['{"sides": 3}'])).structured_predict(Even, ASK)
