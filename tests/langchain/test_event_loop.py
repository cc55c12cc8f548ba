"""Async code is never held up: images are opened and requests submitted on other threads."""

import base64
import io
import threading

import numpy as np
import pytest
from langchain_core.messages import HumanMessage
from langchain_core.runnables import RunnableLambda

from llavakit.images import open_picture
from llavakit.langchain import (
    ChatLLaVA,
    LLaVALLM,
    PageImageLoader,
    apage_messages,
    page_question_chain,
)
from llavakit.testing import FakeBackend
from tests.loopback import LOCAL, Server, reply
from tests.threads import pixels_touched

PAGES = "examples/data/pages.pdf"


class Noting(FakeBackend):
    """Notes on which threads requests are submitted."""

    def __init__(self, **settings):
        super().__init__(self.answer, **settings)
        self.threads = []

    def answer(self, request):
        self.threads.append(threading.current_thread())
        for image in (image for message in request.messages for image in message.images):
            open_picture(image.source, LOCAL)  # as a backend does that answers
        return "red"


@pytest.fixture
def fake():
    return Noting(policy=LOCAL)


async def streamed(pieces):
    return [piece async for piece in pieces]


def check_off_the_loop(fake, opened, pictures=1):
    assert fake.threads and opened
    assert threading.current_thread() not in [*fake.threads, *opened]
    assert [len(one.messages[0].images) for one in fake.requests] == [pictures] * len(fake.requests)


CARRIERS = {
    "base64": lambda png, pil: {"type": "image", "base64": base64.b64encode(png).decode()},
    "bytes": lambda png, pil: {"type": "image", "image": png},
    "PIL": lambda png, pil: {"type": "image", "image": pil},
    "array": lambda png, pil: {"type": "image", "image": np.asarray(pil)},
}
CHATS = {
    "ainvoke": lambda model, asked: model.ainvoke(asked),
    "astream": lambda model, asked: streamed(model.astream(asked)),
    "abatch": lambda model, asked: model.abatch([asked, asked]),
    "agenerate": lambda model, asked: model.agenerate([asked, asked]),
    "astream_events": lambda model, asked: streamed(model.astream_events(asked, version="v2")),
}


@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize("way", CHATS)
async def test_a_chat_opens_pictures_and_submits_off_the_event_loop(way, carrier, png, pil, fake):
    asked = [HumanMessage(["What is it?", CARRIERS[carrier](png, pil)])]
    with pixels_touched() as opened:
        await CHATS[way](ChatLLaVA(backend=fake), asked)
    check_off_the_loop(fake, opened)


@pytest.mark.parametrize("way", CHATS)
async def test_a_chat_without_pictures_submits_off_the_event_loop_too(way, fake):
    await CHATS[way](ChatLLaVA(backend=fake), [HumanMessage("Hello")])
    assert fake.threads and threading.current_thread() not in fake.threads


@pytest.mark.enable_socket
@pytest.mark.parametrize("way", CHATS)
async def test_a_document_behind_a_url_is_opened_off_the_event_loop(way, pil, fake, server: Server):
    pdf = io.BytesIO()
    pil.save(pdf, "PDF", save_all=True, append_images=[pil])
    server.answer = reply(pdf.getvalue())
    asked = [HumanMessage([{"type": "file", "url": server.url("/a.pdf")}])]
    with pixels_touched() as opened:
        await CHATS[way](ChatLLaVA(backend=fake), asked)
    check_off_the_loop(fake, opened, pictures=2)


LLMS = {
    "ainvoke": lambda model, shown: model.ainvoke("What is it?", images=shown),
    "astream": lambda model, shown: streamed(model.astream("What is it?", images=shown)),
    "abatch": lambda model, shown: model.abatch(["What is it?"] * 2, images=shown),
    "agenerate": lambda model, shown: model.agenerate(["What is it?"] * 2, images=shown),
    "bound": lambda model, shown: model.bind(images=shown).ainvoke("What is it?"),
}


@pytest.mark.parametrize("way", LLMS)
async def test_an_llm_opens_pictures_and_submits_off_the_event_loop(way, png, pil, fake):
    for shown in (png, pil, [png, png]):
        fake.requests.clear()
        with pixels_touched() as opened:
            await LLMS[way](LLaVALLM(backend=fake, model="fake"), shown)
        check_off_the_loop(fake, opened, pictures=2 if isinstance(shown, list) else 1)


# Pages


@pytest.fixture
def folder(request, tmp_path):
    """Where images of pages are kept, or None: they are drawn again."""
    return tmp_path / "pictures" if request.param else None


KEPT_OR_NOT = pytest.mark.parametrize(
    "folder", [True, False], ids=["pictures kept", "drawn again"], indirect=True
)


def pages(folder):
    return PageImageLoader(PAGES, text="layer", store=folder, page_seconds=None)


@KEPT_OR_NOT
async def test_pages_are_drawn_and_kept_off_the_event_loop(folder):
    with pixels_touched() as touched:
        documents = await pages(folder).aload()
    assert touched and threading.current_thread() not in touched
    assert documents == pages(folder).load()


@KEPT_OR_NOT
async def test_the_pictures_of_found_pages_are_opened_off_the_event_loop(folder, fake):
    documents = pages(folder).load()
    for model in (ChatLLaVA(backend=fake), None):  # opened, or written as data URLs
        with pixels_touched() as touched:
            prompt = await apage_messages(documents, "What?", model=model, page_seconds=None)
        assert touched and threading.current_thread() not in touched
        assert len(prompt.used) == len(documents)


CHAINS = {
    "ainvoke": lambda chain: chain.ainvoke("What?"),
    "abatch": lambda chain: chain.abatch(["What?", "What?"]),
    "astream": lambda chain: streamed(chain.astream("What?")),
}


@KEPT_OR_NOT
@pytest.mark.parametrize("way", CHAINS)
async def test_a_question_about_pages_is_answered_off_the_event_loop(way, folder, fake):
    documents = pages(folder).load()
    chain = page_question_chain(RunnableLambda(lambda query: documents), ChatLLaVA(backend=fake))
    with pixels_touched() as opened:
        await CHAINS[way](chain)
    check_off_the_loop(fake, opened, pictures=len(documents))
