"""Structured prediction: always valid, or an error that says why."""

from enum import Enum

import pytest
from llama_index.core.base.llms.types import ImageBlock, TextBlock
from llama_index.core.llms import ChatMessage
from llama_index.core.output_parsers import PydanticOutputParser
from llama_index.core.program import MultiModalLLMCompletionProgram
from llama_index.core.prompts import PromptTemplate, RichPromptTemplate
from pydantic import BaseModel, ConfigDict, Field, RootModel

from examples.demo_model.world.pages import Page, draw_page
from llavakit.errors import LlavaKitError
from llavakit.llama_index import LLaVA, LLaVAMultiModal
from llavakit.testing import FakeBackend
from llavakit.values import Completion
from tests.llama_index.conformance.events import listening
from tests.llama_index.pictures import png_of

PAGE = Page("INVOICE", 4711, 372)
LOOK = RichPromptTemplate('{% chat role="user" %}{{img|image}}Extract the data.{% endchat %}')
HELLO = PromptTemplate("Hello")


class Invoice(BaseModel):
    """What is wanted of an invoice."""

    title: str
    number: int
    total: int


EXPECTED = Invoice(title="INVOICE", number=4711, total=372)


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Shape(BaseModel):
    model_config = ConfigDict(extra="forbid")

    colour: Colour
    corners: int = Field(ge=0, le=9)
    inside: list["Shape"] = Field(default_factory=list, max_length=1)


@pytest.fixture(scope="module")
def page() -> bytes:
    return png_of(draw_page(PAGE))


@pytest.fixture
def llm(demo_backend):
    return LLaVA(model="demo", temperature=0)


@pytest.fixture
def uri(page):
    from llavakit.images import open_picture

    return open_picture(page).data_uri()


async def test_a_page_is_read_into_an_object_by_every_method(llm, uri):
    assert llm.structured_predict(Invoice, LOOK, img=uri) == EXPECTED
    assert await llm.astructured_predict(Invoice, LOOK, img=uri) == EXPECTED
    assert list(llm.stream_structured_predict(Invoice, LOOK, img=uri))[-1] == EXPECTED
    stream = await llm.astream_structured_predict(Invoice, LOOK, img=uri)
    assert [one async for one in stream][-1] == EXPECTED


def test_a_structured_llm_sees_the_picture(llm, page):
    asked = ChatMessage(
        role="user", blocks=[ImageBlock(image=page), TextBlock(text="Extract the data.")]
    )
    answer = llm.as_structured_llm(Invoice).chat([asked])
    assert answer.raw == EXPECTED
    assert Invoice.model_validate_json(answer.message.content) == EXPECTED


@pytest.mark.parametrize("kind", [LLaVA, LLaVAMultiModal])
async def test_a_completion_program_sees_the_picture(kind, page, demo_backend):
    # The program's parser would write the schema into the question in words that the bundled
    # model does not know; the schema goes to the call instead, which holds the answer to it.
    asked = {"llm_kwargs": {"json_schema": Invoice.model_json_schema()}}
    program = MultiModalLLMCompletionProgram.from_defaults(
        output_parser=PydanticOutputParser(Invoice, pydantic_format_tmpl=""),
        prompt_template_str="Extract the data.",
        multi_modal_llm=kind(model="demo", temperature=0),
        image_documents=[ImageBlock(image=page)],
    )
    assert program(**asked) == EXPECTED
    assert await program.acall(**asked, image_documents=[ImageBlock(image=page)]) == EXPECTED


@pytest.mark.parametrize("seed", range(8))
def test_a_hot_model_still_gives_valid_objects(seed, demo_backend):
    llm = LLaVA(model="demo", temperature=3.0, seed=seed, max_tokens=400)
    shape = llm.structured_predict(Shape, PromptTemplate("What do you see?"))
    assert isinstance(shape, Shape)


def test_every_token_is_held_to_the_schema(fake):
    fake._answer = lambda request: Completion(EXPECTED.model_dump_json())
    LLaVA(backend=fake).structured_predict(Invoice, HELLO, llm_kwargs={"temperature": 0})
    (request,) = fake.requests
    assert request.params.json_schema == Invoice.model_json_schema()
    assert request.params.temperature == 0 and not request.tools


def by_every_method(llm, output_cls):
    """Calls of the four methods, each of which gives the object at the end."""

    async def astream():
        return [one async for one in await llm.astream_structured_predict(output_cls, HELLO)][-1]

    async def stream():
        return list(llm.stream_structured_predict(output_cls, HELLO))[-1]

    async def predict():
        return llm.structured_predict(output_cls, HELLO)

    return [predict, lambda: llm.astructured_predict(output_cls, HELLO), stream, astream]


@pytest.mark.parametrize(
    ("output_cls", "text"),
    [(Invoice, '{"title":"INV'), (Invoice, '{"title":"INV","number":4711,"total":37'),
     (RootModel[int], "22")],
)  # fmt: skip
async def test_an_answer_that_was_cut_is_an_error_and_no_wrong_object(output_cls, text, fake):
    """22 may be the beginning of 2284."""
    fake._answer = lambda request: Completion(text, finish_reason="length")
    for method in by_every_method(LLaVA(backend=fake), output_cls):
        with pytest.raises(LlavaKitError, match="raise max_tokens"):
            await method()


async def test_an_object_that_ends_with_the_last_token_is_whole(fake):
    whole = Completion(EXPECTED.model_dump_json(), finish_reason="length")
    fake._answer = lambda request: whole
    for method in by_every_method(LLaVA(backend=fake), Invoice):
        assert await method() == EXPECTED


def test_a_number_that_ended_by_itself_is_whole(fake):
    fake._answer = lambda request: Completion("22")
    assert LLaVA(backend=fake).structured_predict(RootModel[int], HELLO).root == 22


def test_a_stream_grows_into_the_object():
    llm = LLaVA(backend=FakeBackend(['{"title": "INVOICE", "number": 4711, "total": 372}']))
    *growing, last = llm.stream_structured_predict(Invoice, HELLO)
    assert last == EXPECTED and len(growing) >= 3
    numbers = [one.number for one in growing]
    assert numbers[0] is None and numbers[-1] == 4711


def test_calls_of_tools_are_the_frameworks_own_way_and_work_too(demo_backend):
    class Person(BaseModel):
        """What a sentence tells of somebody."""

        name: str
        age: int

    llm = LLaVA(model="demo", temperature=0, pydantic_program_mode="function")
    assert llm.structured_predict(Person, PromptTemplate("Ada is 36 years old.")) == Person(
        name="Ada", age=36
    )


async def test_a_prediction_is_told_of_once(fake):
    fake._answer = lambda request: Completion(EXPECTED.model_dump_json())
    llm = LLaVA(backend=fake)
    with listening() as told:
        llm.structured_predict(Invoice, HELLO)
        await llm.astructured_predict(Invoice, HELLO)
    for event in ("LLMStructuredPredictStartEvent", "LLMStructuredPredictEndEvent"):
        assert told.count()[event] == 2
    assert told.count()["LLMChatStartEvent"] == told.count()["LLMChatEndEvent"] == 2
