"""LLaVAMultiModal where programs expect a MultiModalLLM."""

import asyncio

import pytest
from llama_index.core.base.llms.base import BaseLLM
from llama_index.core.base.llms.types import ImageBlock
from llama_index.core.llms import LLM
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.multi_modal_llms import MultiModalLLM
from llama_index.core.schema import Document, ImageDocument, ImageNode, MediaResource, TextNode

from llavakit.errors import UnsupportedContentError
from llavakit.images import open_picture
from llavakit.llama_index import LLaVAMultiModal
from llavakit.values import Image, Text
from tests.llama_index.conformance.events import listening
from tests.llama_index.conformance.methods import COMPLETE, called, text_of

QUESTION = "What colour is the circle?"


@pytest.fixture
def llm(demo_backend):
    return LLaVAMultiModal(model="demo", temperature=0)


@pytest.fixture
def scripted(fake):
    return LLaVAMultiModal(backend=fake)


def test_it_is_both_of_the_frameworks_kinds(llm):
    for kind in (MultiModalLLM, LLM, BaseLLM, FunctionCallingLLM):
        assert isinstance(llm, kind)
    assert "multi" in llm.class_name()  # else the framework warns
    for name in ("context_window", "num_output", "num_input_files", "is_chat_model", "system_role"):
        assert getattr(llm.metadata, name)


CARRIERS = {
    "image nodes": lambda c: [ImageNode(image=c.b64)],
    "image nodes by path": lambda c: [ImageNode(image_path=str(c.path))],
    "image documents": lambda c: [ImageDocument(image=c.b64)],
    "image documents by path": lambda c: [ImageDocument(image_path=str(c.path))],
    "documents": lambda c: [Document(image_resource=MediaResource(data=c.png))],
    "image blocks": lambda c: [ImageBlock(image=c.png)],
    "one, not a list": lambda c: ImageBlock(path=c.path),
    "a nested list": lambda c: [[ImageBlock(image=c.png)], ()],
    "a path": lambda c: c.path,
}


@pytest.mark.parametrize("carrier", list(CARRIERS))
async def test_every_carrier_by_every_completion(carrier, llm, case):
    for method in COMPLETE:
        responses = await called(method, llm, QUESTION, image_documents=CARRIERS[carrier](case))
        assert text_of(responses[-1]) == "red", method


def test_a_mixed_list_keeps_its_order(scripted, fake, case, square):
    mixed = [
        ImageNode(image=case.b64),
        ImageBlock(path=square.path),
        ImageDocument(image=case.b64),
        square.png,
    ]
    scripted.complete("What?", mixed)
    *images, text = fake.requests[0].messages[0].content
    red, blue = open_picture(case.png).digest, open_picture(square.png).digest
    assert [open_picture(image.source).digest for image in images] == [red, blue, red, blue]
    assert text == Text("What?")


def test_two_pictures_are_two_pictures(llm, case, square):
    answer = llm.complete("What colour is the square?", image_documents=[case.png, square.png])
    assert answer.text == "blue"
    assert answer.raw["usage"]["image_tokens"] == 128


@pytest.mark.parametrize("none", [None, [], ()])
def test_no_picture_is_a_plain_prompt(none, scripted, fake):
    scripted.complete("Hello", image_documents=none)
    scripted.complete("Hello")
    assert fake.requests[0].messages == fake.requests[1].messages
    assert not any(isinstance(part, Image) for part in fake.requests[0].messages[0].content)


def test_a_node_without_a_picture_is_not_dropped_silently(scripted, fake):
    with pytest.raises(UnsupportedContentError, match="no image"):
        scripted.complete("What?", image_documents=[TextNode(text="words")])
    assert fake.requests == []


@pytest.mark.parametrize("method", list(COMPLETE))
async def test_a_call_with_pictures_is_told_of_once(method, scripted, case):
    with listening() as told:
        await called(method, scripted, "What?", image_documents=[case.png])
    assert told.count()["LLMCompletionStartEvent"] == told.count()["LLMCompletionEndEvent"] == 1


async def test_a_cancelled_completion_frees_the_model(case):
    from llavakit.testing import FakeBackend

    fake = FakeBackend(["one two"], hang=True)
    task = asyncio.create_task(LLaVAMultiModal(backend=fake).acomplete("What?", [case.png]))
    while not fake.requests:
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert fake.cancelled == 1
