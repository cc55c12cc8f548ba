"""LangChain's ``ChatOpenAI``, unchanged, against a server process with the bundled model."""

import asyncio

import openai
import pytest
import pytest_asyncio
from langchain_core.exceptions import ContextOverflowError
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, Field

from tests.serving.conftest import ENDLESS, data_uri, draw, picture_block

pytestmark = pytest.mark.enable_socket


def about(question, colour="red"):
    return HumanMessage([picture_block(colour), {"type": "text", "text": question}])


@pytest.fixture
def make(served):
    def chat(**settings):
        settings = {"temperature": 0, "max_retries": 0} | settings
        return ChatOpenAI(model="demo", base_url=f"{served.url}/v1", api_key="any", **settings)

    return chat


@pytest.fixture
def chat(make):
    return make()


@pytest_asyncio.fixture
async def amake(make):
    # LangChain's own async client is shared by all event loops of a process, and each test
    # has a loop of its own.
    async with openai.DefaultAsyncHttpxClient() as http:
        yield lambda **settings: make(http_async_client=http, **settings)


def test_invoke_answers_about_the_picture(chat):
    answer = chat.invoke([about("What colour is the circle?", "blue")])
    assert answer.content == "blue"
    assert answer.usage_metadata["input_tokens"] > 64
    assert answer.response_metadata["finish_reason"] == "stop"
    assert answer.response_metadata["model_name"] == "demo"


def test_a_standard_image_block_is_understood(chat):
    uri = data_uri(draw("green"))
    block = {"type": "image", "base64": uri.partition(",")[2], "mime_type": "image/png"}
    message = HumanMessage([block, {"type": "text", "text": "What colour is the circle?"}])
    assert chat.invoke([message]).content == "green"


def test_stream_adds_up_to_the_answer_with_its_usage(make):
    chat = make(stream_usage=True)
    messages = [about("Describe the picture.")]
    whole = chat.invoke(messages)
    chunks = list(chat.stream(messages))
    assert len(chunks) > 3
    added = sum(chunks[1:], chunks[0])
    assert added.content == whole.content
    assert added.usage_metadata["output_tokens"] == whole.usage_metadata["output_tokens"]


async def test_the_async_twins_say_the_same(amake):
    chat = amake()
    messages = [about("What colour is the circle?")]
    assert (await chat.ainvoke(messages)).content == "red"
    assert "".join([chunk.content async for chunk in chat.astream(messages)]) == "red"


def test_batch_keeps_the_order(chat):
    colours = ["red", "blue", "green", "yellow"]
    answers = chat.batch([[about("What colour is the circle?", colour)] for colour in colours])
    assert [answer.content for answer in answers] == colours


class look(BaseModel):
    """Look at a shape."""

    shape: str = Field(description="circle or square")


def test_a_tool_is_called_and_its_result_is_heard(chat):
    bound = chat.bind_tools([look], tool_choice="look", parallel_tool_calls=False)
    question = about("Look at the circle.")
    called = bound.invoke([question])
    assert [call["name"] for call in called.tool_calls] == ["look"]
    streamed = list(bound.stream([question]))
    added = sum(streamed[1:], streamed[0])
    assert added.tool_calls[0]["args"] == called.tool_calls[0]["args"]
    result = ToolMessage("It is round.", tool_call_id=called.tool_calls[0]["id"])
    last = chat.invoke([question, called, result])
    assert isinstance(last, AIMessage) and last.content


class Seen(BaseModel):
    """What the image shows."""

    colour: str
    shape: str


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_structured_output_is_an_object_of_its_class(chat, method):
    asker = chat.with_structured_output(Seen, method=method)
    assert isinstance(asker.invoke([about("What do you see?")]), Seen)


def test_json_mode_gives_a_dict(make):
    asker = make(max_tokens=300).with_structured_output(
        {"title": "Seen", "type": "object", "properties": {"colour": {"type": "string"}}},
        method="json_schema",
    )
    assert set(asker.invoke([about("What do you see?")])) <= {"colour"}


def test_logprobs_and_several_answers(make):
    chat = make(logprobs=True, top_logprobs=2, n=2)
    result = chat.generate([[about("What colour is the circle?")]])
    assert [one.text for one in result.generations[0]] == ["red", "red"]
    told = result.generations[0][0].message.response_metadata["logprobs"]["content"]
    assert told[0]["token"] == " red" and len(told[0]["top_logprobs"]) == 2


def test_a_system_message_and_sampling_settings_are_taken(make):
    chat = make(
        max_tokens=4, seed=1, top_p=0.9, stop=["."], frequency_penalty=0, presence_penalty=0
    )
    answer = chat.invoke([SystemMessage("Answer briefly."), about("Describe the picture.")])
    assert 0 < answer.usage_metadata["output_tokens"] <= 4


async def test_a_cancelled_stream_frees_the_engine(served, amake):
    before = await asyncio.to_thread(served.idle)
    chat = amake(extra_body=ENDLESS)
    heard = asyncio.Event()

    async def listen():
        async for _ in chat.astream("Go on"):
            heard.set()

    task = asyncio.create_task(listen())
    await heard.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    after = await asyncio.to_thread(served.idle)
    assert after["engine_requests_cancelled_total"] == before["engine_requests_cancelled_total"] + 1


LONG = HumanMessage("red circle " * 3000)


async def test_what_is_too_long_is_langchains_own_overflow(make, amake):
    chat = make()
    for ask in (chat.invoke, lambda asked: list(chat.stream(asked))):
        with pytest.raises(ContextOverflowError, match="maximum context length is"):
            ask([LONG])
    with pytest.raises(ContextOverflowError):
        await amake().ainvoke([LONG])


def test_of_a_call_that_was_cut_the_client_runs_nothing(make):
    def pay(amount: int) -> str:
        """Pay an amount."""

    for limit in range(8, 18):
        asking = make(max_tokens=limit).bind_tools([pay])
        streamed = list(asking.stream("Pay 3456."))
        for answer in (asking.invoke("Pay 3456."), sum(streamed[1:], streamed[0])):
            assert all(call["args"] == {"amount": 3456} for call in answer.tool_calls)
