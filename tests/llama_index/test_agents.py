"""LlamaIndex's agents: the bundled model calls tools and sees images; loops end.

ReAct's text protocol is beyond the bundled model, so that is spoken by a scripted one; the
bundled one answers its images under a short header instead of the framework's long one.
"""

import pytest
from llama_index.core.agent.react.formatter import ReActChatFormatter
from llama_index.core.agent.workflow import AgentStream, AgentWorkflow, FunctionAgent, ReActAgent
from llama_index.core.base.llms.types import ImageBlock, TextBlock
from llama_index.core.llms import ChatMessage
from llama_index.core.memory import Memory
from llama_index.core.tools import FunctionTool

from llavakit.images import open_picture
from llavakit.llama_index import LLaVA, LLaVAMultiModal
from llavakit.testing import FakeBackend
from llavakit.values import Completion, ToolCall

# The framework's workflows look at every attribute of an agent, pydantic's old ones too.
pytestmark = [
    pytest.mark.filterwarnings("ignore:<aiosqlite:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pydantic.PydanticDeprecationWarning"),
    pytest.mark.filterwarnings("ignore:is_running called from within a step"),
]

QUESTIONS = [
    ("Multiply 6 and 7.", ("multiply", {"a": 6, "b": 7}), "42"),
    ("What is the weather in Paris?", ("get_weather", {"city": "Paris"}), "sunny"),
]


def multiply(a: int, b: int) -> int:
    """Multiply two numbers."""
    return a * b


def get_weather(city: str) -> str:
    """Get the weather of a city."""
    return {"Paris": "sunny", "London": "rainy"}[city]


TOOLS = [FunctionTool.from_defaults(multiply), FunctionTool.from_defaults(get_weather)]


@pytest.fixture(params=[LLaVA, LLaVAMultiModal], ids=lambda kind: kind.__name__)
def llm(request, demo_backend):
    return request.param(model="demo", temperature=0)


def looked_at(case):
    return ChatMessage(
        role="user",
        blocks=[ImageBlock(path=case.path), TextBlock(text="What colour is the circle?")],
    )


def calls_of(output):
    return [(call.tool_name, call.tool_kwargs) for call in output.tool_calls]


@pytest.mark.parametrize(("question", "call", "result"), QUESTIONS)
@pytest.mark.parametrize("streaming", [True, False])
async def test_a_function_agent_calls_the_right_tool(llm, streaming, question, call, result):
    agent = FunctionAgent(tools=TOOLS, llm=llm, streaming=streaming)
    output = await agent.run(user_msg=question)
    assert calls_of(output) == [call]
    assert result in str(output)


@pytest.mark.parametrize(("question", "call", "result"), QUESTIONS)
async def test_an_agent_workflow_does_too(llm, question, call, result):
    agent = FunctionAgent(name="one", description="Does all.", tools=TOOLS, llm=llm)
    output = await AgentWorkflow(agents=[agent], root_agent="one").run(user_msg=question)
    assert calls_of(output) == [call] and result in str(output)


async def test_agents_see_the_picture_of_a_message(llm, case):
    agent = FunctionAgent(name="one", description="Sees.", tools=TOOLS, llm=llm)
    assert str(await agent.run(user_msg=looked_at(case))) == "red"
    workflow = AgentWorkflow(agents=[agent], root_agent="one")
    assert str(await workflow.run(user_msg=looked_at(case))) == "red"


async def test_an_agent_remembers_the_picture(llm, case):
    memory = Memory.from_defaults(token_limit=3500)
    agent = FunctionAgent(tools=TOOLS, llm=llm)
    shown = ChatMessage(
        role="user", blocks=[ImageBlock(path=case.path), TextBlock(text="What is this?")]
    )
    assert "circle" in str(await agent.run(user_msg=shown, memory=memory))
    assert str(await agent.run(user_msg="What colour is the circle?", memory=memory)) == "red"


async def test_an_agents_answer_streams(llm, case):
    agent = FunctionAgent(tools=TOOLS, llm=llm)
    handler = agent.run(user_msg=looked_at(case))
    told = [event async for event in handler.stream_events() if isinstance(event, AgentStream)]
    assert "".join(event.delta for event in told) == told[-1].response == "red"
    assert told[-1].raw["finish_reason"] == "stop"
    await handler


async def test_a_react_agent_sees_the_picture(llm, case):
    # Without "Thought:" and "Answer:" the framework takes the text for the answer.
    formatter = ReActChatFormatter(system_header="Answer the question.")
    agent = ReActAgent(tools=[], llm=llm, formatter=formatter)
    assert str(await agent.run(user_msg=looked_at(case))) == "red"


async def test_a_react_agents_protocol_carries_the_picture_to_every_step(case, digest):
    fake = FakeBackend(
        [
            'Thought: I need the weather.\nAction: get_weather\nAction Input: {"city": "Paris"}',
            "Thought: I can answer.\nAnswer: sunny and red",
        ]
    )
    agent = ReActAgent(tools=TOOLS, llm=LLaVA(backend=fake))
    output = await agent.run(user_msg=looked_at(case))
    assert str(output) == "sunny and red" and calls_of(output) == [QUESTIONS[1][1]]
    assert len(fake.requests) == 2
    for request in fake.requests:
        (image,) = [image for message in request.messages for image in message.images]
        assert open_picture(image.source).digest == digest
    assert "sunny" in fake.requests[1].messages[-1].text


async def test_a_tool_may_show_a_function_agent_a_picture(case, digest):
    async def take_picture() -> ImageBlock:
        """Take an image."""
        return ImageBlock(path=case.path)

    fake = FakeBackend(
        [Completion("", (ToolCall("1", "take_picture", {}),), "tool_calls"), "a red circle"]
    )
    agent = FunctionAgent(tools=[FunctionTool.from_defaults(take_picture)], llm=LLaVA(backend=fake))
    assert str(await agent.run(user_msg="Look.")) == "a red circle"
    (image,) = fake.requests[1].messages[-1].images
    assert open_picture(image.source).digest == digest
