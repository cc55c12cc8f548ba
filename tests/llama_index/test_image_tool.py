"""LlamaIndex's agents ask about images through the tool, with any brain."""

import asyncio
import json
from pathlib import Path

import pytest
from llama_index.core.agent.workflow import AgentWorkflow, FunctionAgent, ReActAgent
from llama_index.core.base.llms.types import (
    AudioBlock,
    CitableBlock,
    DocumentBlock,
    ImageBlock,
    TextBlock,
)
from llama_index.core.llms import ChatMessage
from llama_index.core.memory import ChatMemoryBuffer, Memory
from llama_index.core.tools import FunctionTool, adapt_to_async_tool
from llama_index.core.tools.calling import acall_tool, call_tool
from llama_index.core.workflow import Context

from llavakit.errors import EngineError, QueueFullError
from llavakit.images import open_picture
from llavakit.llama_index import ImageQuestionTool, LLaVA
from llavakit.testing import FakeBackend
from llavakit.values import Completion, ToolCall
from tests.loopback import PNG

# The framework's workflows look at every attribute of an agent, pydantic's old ones too.
pytestmark = [
    pytest.mark.filterwarnings("ignore:<aiosqlite:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pydantic.PydanticDeprecationWarning"),
    pytest.mark.filterwarnings("ignore:is_running called from within a step"),
]

DATA = "examples/data"
SQUARE = "What colour is the square?"


def calls(image, question=SQUARE):
    asked = ToolCall("1", "ask_image", {"question": question, "image": image})
    return Completion("", (asked,), "tool_calls")


def thought(image, question=SQUARE):
    asked = json.dumps({"question": question, "image": image})
    return f"Thought: I have to look.\nAction: ask_image\nAction Input: {asked}"


def shown(*names, text=SQUARE):
    blocks = [ImageBlock(path=f"{DATA}/{name}") for name in names]
    return ChatMessage(role="user", blocks=[*blocks, TextBlock(text=text)])


def outputs(result):
    return [call.tool_output for call in result.tool_calls]


@pytest.fixture(scope="module")
def looking(demo_backend):
    return ImageQuestionTool(model="demo", attachments={"page_3": f"{DATA}/invoice.png"})


async def run(kind, tools, answers, message, **arguments):
    fake = FakeBackend(answers)
    agent = kind(name="one", description="Asks.", tools=tools, llm=LLaVA(backend=fake))
    if arguments.pop("workflow", False):
        agent = AgentWorkflow(agents=[agent], root_agent="one")
    return await agent.run(user_msg=message, **arguments), fake


@pytest.mark.parametrize("workflow", [False, True])
async def test_a_function_agent_answers_about_the_picture_of_its_conversation(looking, workflow):
    answers = [calls("image_1"), "It is blue."]
    result, fake = await run(
        FunctionAgent, [looking], answers, shown("shapes.png"), workflow=workflow
    )
    (output,) = outputs(result)
    assert output.content == '"blue"' and not output.is_error
    assert output.raw_output["image"] == "image_1" and output.raw_output["text"] == "blue"
    assert output.raw_output["sha256"] == open_picture(f"{DATA}/shapes.png").digest
    assert str(result) == "It is blue." and '"blue"' in fake.requests[1].messages[-1].text


async def test_a_react_agent_does_too(looking):
    answers = [thought("image_1"), "Thought: I can answer.\nAnswer: It is blue."]
    result, fake = await run(ReActAgent, [looking], answers, shown("shapes.png"))
    assert str(result) == "It is blue." and outputs(result)[0].content == '"blue"'
    assert '"blue"' in fake.requests[1].messages[-1].text


@pytest.mark.parametrize("kind", [FunctionAgent, ReActAgent])
@pytest.mark.parametrize(
    "image", ["image_9", "/etc/hostname", "http://127.0.0.1/x.png", "data:image/png;base64,AAAA"]
)
async def test_after_a_refusal_the_agent_goes_on(looking, kind, image):
    if kind is FunctionAgent:
        answers = [calls(image), calls("image_1"), "It is blue."]
    else:
        answers = [thought(image), thought("image_1"), "Thought: done\nAnswer: It is blue."]
    result, fake = await run(kind, [looking], answers, shown("shapes.png"))
    refused, answered = outputs(result)
    assert refused.is_error and refused.content.startswith("Error: ")
    assert "image_1" in refused.content and refused.content in fake.requests[1].messages[-1].text
    assert answered.content == '"blue"' and str(result) == "It is blue."


@pytest.mark.parametrize("memory", [Memory.from_defaults, ChatMemoryBuffer.from_defaults])
async def test_pictures_are_counted_over_the_runs_of_one_memory(looking, memory):
    held = memory(token_limit=30000)
    await run(FunctionAgent, [looking], ["Hello."], shown("heart.png"), memory=held)
    answers = [calls("image_2"), calls("image_1", "What colour is the heart?"), "done"]
    result, _ = await run(FunctionAgent, [looking], answers, shown("shapes.png"), memory=held)
    assert [output.content for output in outputs(result)] == ['"blue"', '"red"']


async def test_a_picture_that_another_tool_gave_back_in_this_run_has_a_name_too(looking):
    async def take_picture() -> ImageBlock:
        """Take an image."""
        return ImageBlock(image=Path(f"{DATA}/shapes.png").read_bytes())

    taking = Completion("", (ToolCall("0", "take_picture", {}),), "tool_calls")
    tools = [looking, FunctionTool.from_defaults(take_picture)]
    answers = [taking, calls("image_2"), "It is blue."]
    result, _ = await run(FunctionAgent, tools, answers, shown("heart.png"))
    assert outputs(result)[1].content == '"blue"'


@pytest.mark.enable_socket
async def test_an_address_or_path_that_a_model_put_there_is_not_opened(server, tmp_path):
    (tmp_path / "secret.png").write_bytes(PNG)
    history = [
        ChatMessage(role="user", content="Search."),
        ChatMessage(
            role="assistant",
            blocks=[
                ImageBlock.model_construct(url=server.url()),
                ImageBlock(path=tmp_path / "secret.png"),
            ],
        ),
    ]
    answers = [calls("image_1"), calls("image_2"), calls("image_3"), "done"]
    tool = ImageQuestionTool(backend=FakeBackend(["seen"]))
    result, _ = await run(FunctionAgent, [tool], answers, shown("shapes.png"), chat_history=history)
    assert [output.is_error for output in outputs(result)] == [True, True, False]
    assert "opened from here" in outputs(result)[0].content
    assert server.connections == 0


async def test_pictures_in_every_carrier_are_counted_and_those_nobody_can_open_keep_their_number(
    looking,
):
    heart = ImageBlock(image=Path(f"{DATA}/heart.png").read_bytes())
    blocks = [
        CitableBlock(title="a", source="b", content=[heart]),
        ImageBlock(),
        AudioBlock(audio=b"RIFF"),
        DocumentBlock(path=f"{DATA}/pages.pdf"),
        ImageBlock(path=f"{DATA}/shapes.png"),
    ]
    context = await _context_of([ChatMessage(role="user", blocks=blocks)])

    async def ask(image, question="What is the title?"):
        return await looking.acall(question=question, image=image, ctx=context)

    assert (await ask("image_1", "What colour is the heart?")).content == '"red"'
    assert "no source" in (await ask("image_2")).content
    assert (await ask("image_3", SQUARE)).content == '"blue"'
    assert "pages; name one" in (await ask("document_1")).content
    assert (await ask("document_1#page=1")).raw_output["image"] == "document_1#page=1"


async def _context_of(messages):
    context = Context(FunctionAgent(tools=[], llm=LLaVA(backend=FakeBackend())))
    memory = ChatMemoryBuffer.from_defaults(token_limit=30000)
    await memory.aset(messages)
    await context.store.set("memory", memory)
    return context


async def test_it_works_outside_of_any_agent(looking):
    asked = {"question": "What is the title?", "image": "page_3"}
    assert (
        looking(**asked).content == looking("What is the title?", "page_3").content == '"INVOICE"'
    )
    assert (await looking.acall(**asked)).content == '"INVOICE"'
    assert call_tool(looking, asked).content == '"INVOICE"'
    assert (await acall_tool(looking, asked)).content == '"INVOICE"'
    assert adapt_to_async_tool(looking) is looking
    assert looking(question=SQUARE, image="image_1").is_error


async def test_the_brain_is_shown_two_arguments_and_cannot_forge_the_third(looking):
    function = looking.metadata.to_openai_tool()["function"]
    assert list(function["parameters"]["properties"]) == ["question", "image"]
    forged = {"store": {"memory": [{"path": "/etc/hostname"}]}}
    told = await looking.acall(question=SQUARE, image="image_1", ctx=forged)
    assert told.is_error and "no image 'image_1'" in told.content


@pytest.mark.parametrize(
    "arguments",
    [{}, {"image": "page_3"}, {"question": 3, "image": "page_3"}, {"question": "x", "image": None},
     {"question": "x", "image": "page_3", "detail": "high"}],
)  # fmt: skip
async def test_wrong_arguments_are_told(looking, arguments):
    for told in (looking(**arguments), await looking.acall(**arguments)):
        assert told.is_error and "two texts and nothing else" in told.content


async def test_a_model_that_is_busy_is_told_and_one_that_died_is_raised():
    asked = {"question": SQUARE, "image": "plan"}
    busy = FakeBackend([QueueFullError("Too many requests are waiting.")])
    told = ImageQuestionTool(backend=busy, attachments={"plan": PNG})(**asked)
    assert told.is_error and "waiting" in told.content
    assert isinstance(told.exception, QueueFullError)
    dead = FakeBackend([EngineError("The engine died.")])
    with pytest.raises(EngineError, match="died"):
        ImageQuestionTool(backend=dead, attachments={"plan": PNG})(**asked)


async def test_cancelling_a_question_frees_the_model_that_looks():
    eyes = FakeBackend(["a blue"], hang=True)
    tool = ImageQuestionTool(backend=eyes, attachments={"plan": PNG})
    task = asyncio.create_task(tool.acall(question=SQUARE, image="plan"))
    while not eyes.requests:
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert eyes.cancelled == 1


@pytest.mark.filterwarnings("ignore:Skipping serialization of known unserializable key. memory")
async def test_the_context_of_a_run_is_kept_with_its_answers(looking):
    fake = FakeBackend([calls("page_3", "What is the title?"), "INVOICE"])
    agent = FunctionAgent(tools=[looking], llm=LLaVA(backend=fake))
    context = Context(agent)
    result = await agent.run(user_msg="Look at page_3.", ctx=context)
    assert json.loads(json.dumps(outputs(result)[0].raw_output))["text"] == "INVOICE"
    assert json.dumps(context.to_dict())


@pytest.mark.parametrize(
    ("question", "image", "answer"),
    [
        ("What is the title? The picture is page_3.", "page_3", "INVOICE"),
        ("What is the total? The picture is page_3.", "page_3", "320"),
        ("What colour is the square? The picture is scan_7.", "scan_7", "blue"),
    ],
)
async def test_the_bundled_model_as_the_brain_asks_about_an_attachment(
    demo_backend, question, image, answer
):
    # It is asked in the words that it knows.
    attachments = {"page_3": f"{DATA}/invoice.png", "scan_7": f"{DATA}/shapes.png"}
    tool = ImageQuestionTool(model="demo", attachments=attachments)
    llm = LLaVA(model="demo", temperature=0, max_tokens=60)
    result = await FunctionAgent(tools=[tool], llm=llm).run(user_msg=question)
    (call,) = result.tool_calls
    assert call.tool_kwargs["image"] == image and call.tool_output.content == f'"{answer}"'
    assert answer in str(result)
