"""One set of weights, one encoding of an image and one answer, whichever framework asks."""

import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from llama_index.core.base.llms.types import ImageBlock, TextBlock, ToolCallBlock
from llama_index.core.llms import ChatMessage

import llavakit
from llavakit.langchain import ChatLLaVA
from llavakit.llama_index import LLaVA, LLaVAMultiModal
from llavakit.sources import SourcePolicy
from llavakit.values import Image, Message, SamplingParams, ToolCall
from tests.living import living
from tests.llama_index.conformance import CARRIERS
from tests.llama_index.conformance.methods import CHAT, called, text_of
from tests.llama_index.pictures import Case
from tests.loopback import Server, reply

QUESTION = "What colour is the circle?"
GREEDY = SamplingParams(temperature=0, max_tokens=40)


@pytest.fixture(scope="module")
def red(tmp_path_factory):
    # Pixels of its own, so that no other test has encoded them.
    return Case.drawn(tmp_path_factory.mktemp("matrix"), "ellipse", (219, 33, 27))


@pytest.fixture(scope="module")
def settings(red, demo_backend):
    policy = SourcePolicy(roots=(red.path.parent,), allow_private_hosts=True)
    return {"model": "demo", "temperature": 0, "max_tokens": 40, "source_policy": policy}


@pytest.fixture(scope="module")
def backend(settings):
    """Held, and used once, so that it tells what its engine has encoded before."""
    backend = LLaVA(**settings).backend_for()
    backend.ask(None, "Hello")
    return backend


@pytest.fixture
def chain_model(settings):
    return ChatLLaVA(**settings)


@pytest.fixture
def index_model(settings):
    return LLaVA(**settings)


async def test_every_carrier_is_one_answer_and_one_encoding_shared_with_langchain(
    chain_model, index_model, backend, settings, red
):
    assert index_model.backend_for() is chain_model.backend_for() is backend
    before = backend.stats().get("images_encoded", 0)
    asked = [HumanMessage([{"type": "image", "base64": red.b64}, QUESTION])]
    assert chain_model.invoke(asked).text == "red"
    for name, carrier in CARRIERS.items():
        for method in CHAT:
            responses = await called(method, index_model, [carrier(red, QUESTION)])
            assert text_of(responses[-1]) == "red", (name, method)
    completion = LLaVAMultiModal(**settings).complete(QUESTION, image_documents=[red.path])
    assert completion.text == "red"
    assert backend.stats()["images_encoded"] == before + 1


@pytest.mark.enable_socket
def test_a_url_is_fetched_under_the_policy_and_is_the_same_picture(index_model, backend, red):
    server = Server()
    server.answer = reply(red.png)
    block = ImageBlock(url=server.url("/a.png"))
    before = backend.stats().get("images_encoded", 0)
    answer = index_model.chat([ChatMessage(blocks=[block, TextBlock(text=QUESTION)])])
    server.close()
    assert answer.message.content == "red" and len(server.requests) == 1
    assert backend.stats()["images_encoded"] <= before + 1


def test_both_frameworks_load_one_set_of_weights():
    from llavakit.engine.engine import Engine

    shared = llavakit.load("demo")
    models = [ChatLLaVA(model="demo"), LLaVA(model="demo"), LLaVAMultiModal(model="demo")]
    assert {id(model.backend_for()) for model in models} == {id(shared)}
    models[0].invoke("Hello")
    models[1].complete("Hello")
    mine = shared._engine
    open_ones = [one for one in living(Engine) if not one.closed]
    assert [one for one in open_ones if one.config == mine.config] == [mine]
    # Backends that differ only in their policy share the engine too.
    fenced = LLaVA(model="demo", source_policy=SourcePolicy(roots=()))
    fenced.complete("Hello")
    assert fenced.backend_for()._engine is mine


def conversations(red):
    """The same conversations in three notations: LangChain's, LlamaIndex's, our own."""
    picture = {"type": "image", "base64": red.b64}
    block, image = ImageBlock(image=red.png), Image(red.png)
    yield (
        [HumanMessage([picture, QUESTION])],
        [ChatMessage(role="user", blocks=[block, TextBlock(text=QUESTION)])],
        [Message("user", [image, QUESTION])],
    )
    yield (
        [SystemMessage("Be brief."), HumanMessage(["Describe the picture.", picture])],
        [
            ChatMessage(role="system", content="Be brief."),
            ChatMessage(role="user", blocks=[TextBlock(text="Describe the picture."), block]),
        ],
        [Message("system", "Be brief."), Message("user", ["Describe the picture.", image])],
    )
    yield (
        [
            HumanMessage([picture, "What is this?"]),
            AIMessage("a red circle"),
            HumanMessage("Sure?"),
        ],
        [
            ChatMessage(role="user", blocks=[block, TextBlock(text="What is this?")]),
            ChatMessage(role="assistant", content="a red circle"),
            ChatMessage(role="user", content="Sure?"),
        ],
        [
            Message("user", [image, "What is this?"]),
            Message("assistant", "a red circle"),
            Message("user", "Sure?"),
        ],
    )
    call = {"name": "multiply", "args": {"a": 6, "b": 7}, "id": "1"}
    yield (
        [
            HumanMessage("Multiply 6 and 7."),
            AIMessage("", tool_calls=[call]),
            ToolMessage("42", tool_call_id="1"),
        ],
        [
            ChatMessage(role="user", content="Multiply 6 and 7."),
            ChatMessage(
                role="assistant",
                blocks=[
                    ToolCallBlock(
                        tool_call_id="1", tool_name="multiply", tool_kwargs={"a": 6, "b": 7}
                    )
                ],
            ),
            ChatMessage(role="tool", content="42", additional_kwargs={"tool_call_id": "1"}),
        ],
        [
            Message("user", "Multiply 6 and 7."),
            Message("assistant", tool_calls=[ToolCall("1", "multiply", {"a": 6, "b": 7})]),
            Message("tool", "42", tool_call_id="1"),
        ],
    )


@pytest.mark.parametrize("number", range(4))
def test_answers_are_token_identical_through_both_frameworks_and_the_backend(
    number, chain_model, index_model, red
):
    chained, indexed, own = list(conversations(red))[number]
    backend = llavakit.load("demo")
    expected = backend.generate(own, GREEDY)
    through_chain = chain_model.invoke(chained)
    through_index = index_model.chat(indexed)
    assert through_chain.text == through_index.message.content == expected.text
    usage = through_index.raw["usage"]
    assert usage["completion_tokens"] == expected.usage.completion_tokens
    assert through_chain.usage_metadata["output_tokens"] == expected.usage.completion_tokens
    counts = {
        usage["prompt_tokens"],
        through_chain.usage_metadata["input_tokens"],
        expected.usage.prompt_tokens,
    }
    assert len(counts) == 1


def test_sampling_with_a_seed_is_the_same_in_both(settings, red):
    drawn = {**settings, "temperature": 1.5, "seed": 11}
    asked = [HumanMessage([{"type": "image", "base64": red.b64}, "Describe the picture."])]
    message = CARRIERS["bytes"](red, "Describe the picture.")
    assert ChatLLaVA(**drawn).invoke(asked).text == LLaVA(**drawn).chat([message]).message.content
