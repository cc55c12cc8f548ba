"""PDFs in messages become images of their pages, in every notation, and never too many."""

import base64
import io
from itertools import pairwise

import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from PIL import Image as PILImage

from llavakit.documents import open_pages
from llavakit.errors import (
    DocumentError,
    RenderError,
    SourceNotAllowedError,
)
from llavakit.langchain import ChatLLaVA
from llavakit.testing import IMAGE_TOKENS, FakeBackend
from llavakit.values import Image, Text
from tests.documents.hostile import nested_forms
from tests.loopback import LOCAL, Server, reply

COLOURS = ("red", "lime", "blue")


@pytest.fixture(scope="module")
def pdf() -> bytes:
    """Three pages, each of its own colour."""
    first, *others = (PILImage.new("RGB", (60, 40), colour) for colour in COLOURS)
    buffer = io.BytesIO()
    first.save(buffer, "PDF", save_all=True, append_images=others)
    return buffer.getvalue()


@pytest.fixture
def b64(pdf) -> str:
    return base64.b64encode(pdf).decode()


@pytest.fixture
def fake() -> FakeBackend:
    return FakeBackend(["seen"] * 4)


@pytest.fixture
def model(fake) -> ChatLLaVA:
    return ChatLLaVA(backend=fake, model="fake")


CARRIERS = {
    "v1 base64": lambda b64: {"type": "file", "base64": b64, "mime_type": "application/pdf"},
    "v0 base64": lambda b64: {
        "type": "file",
        "source_type": "base64",
        "data": b64,
        "mime_type": "application/pdf",
    },
    "openai file": lambda b64: {
        "type": "file",
        "file": {"filename": "a.pdf", "file_data": f"data:application/pdf;base64,{b64}"},
    },
    "openai input_file": lambda b64: {
        "type": "input_file",
        "filename": "a.pdf",
        "file_data": f"data:application/pdf;base64,{b64}",
    },
    "anthropic document": lambda b64: {
        "type": "document",
        "source": {"type": "base64", "media_type": "application/pdf", "data": b64},
    },
    "google media": lambda b64: {"type": "media", "mime_type": "application/pdf", "data": b64},
    "bedrock document": lambda b64: {
        "document": {"format": "pdf", "name": "a", "source": {"bytes": base64.b64decode(b64)}}
    },
    "said to be an image": lambda b64: {"type": "file", "base64": b64, "mime_type": "image/png"},
}


def parts_seen(fake: FakeBackend) -> tuple[Text | Image, ...]:
    return fake.requests[-1].messages[0].content


def digests(parts) -> list[str]:
    return [part.source.digest for part in parts if isinstance(part, Image)]


@pytest.mark.parametrize("name", list(CARRIERS))
def test_every_notation_gives_the_pages_in_their_place(name, b64, pdf, model, fake):
    block = CARRIERS[name](b64)
    model.invoke([HumanMessage([{"type": "text", "text": "before"}, block, "behind"])])
    before, *pages, behind = parts_seen(fake)
    assert (before.text, behind.text) == ("before", "behind")
    assert digests(pages) == [page.digest for page in open_pages(pdf)]
    assert all(one != other for one, other in pairwise(digests(pages)))


async def test_async_and_streams_take_them_too(b64, model, fake):
    question = [HumanMessage([CARRIERS["v1 base64"](b64)])]
    await model.ainvoke(question)
    list(model.stream(question))
    assert [chunk async for chunk in model.astream(question)]
    assert {tuple(digests(request.messages[0].content)) for request in fake.requests} == {
        tuple(digests(parts_seen(fake)))
    }


def test_a_tool_may_return_one(b64, model, fake):
    call = {"name": "read", "args": {}, "id": "1"}
    model.invoke(
        [
            HumanMessage("Read it."),
            AIMessage("", tool_calls=[call]),
            ToolMessage([CARRIERS["v1 base64"](b64)], tool_call_id="1"),
        ]
    )
    assert len(digests(fake.requests[-1].messages[-1].content)) == 3


def test_a_file_is_read_from_its_path(pdf, tmp_path, model, fake):
    path = tmp_path / "a.pdf"
    path.write_bytes(pdf)
    model.invoke([HumanMessage([{"type": "file", "path": str(path)}])])
    assert digests(parts_seen(fake)) == [page.digest for page in open_pages(path)]


def test_a_url_field_names_no_file(pdf, tmp_path, model, fake):
    path = tmp_path / "a.pdf"
    path.write_bytes(pdf)
    with pytest.raises(SourceNotAllowedError):
        model.invoke([HumanMessage([{"type": "file", "url": path.as_uri()}])])
    assert fake.requests == []


@pytest.mark.enable_socket
async def test_one_behind_a_url_is_fetched_for_the_model_only(pdf, server: Server):
    server.answer = reply(pdf)
    fake = FakeBackend(["seen"] * 2, policy=LOCAL)
    model = ChatLLaVA(backend=fake, model="fake")
    block = {"type": "file", "url": server.url("/a.pdf")}
    prompt = model._convert_input([HumanMessage([block])])
    assert server.requests == []
    model.invoke(prompt)
    await model.ainvoke(prompt)
    for request in fake.requests:
        assert len(digests(request.messages[0].content)) == 3
    before = len(server.requests)
    assert model.get_num_tokens_from_messages([HumanMessage([block])]) >= 3 * IMAGE_TOKENS
    assert len(server.requests) > before


def test_too_many_pages_are_refused_with_both_numbers(b64, fake):
    model = ChatLLaVA(backend=fake, model="fake", max_pages=2)
    with pytest.raises(DocumentError, match="has 3 pages and a message takes 2; raise max_pages"):
        model.invoke([HumanMessage([CARRIERS["v1 base64"](b64)])])
    assert fake.requests == []


def test_a_damaged_one_is_refused(model, fake):
    with pytest.raises(DocumentError):
        model.invoke([HumanMessage([{"type": "file", "base64": "JVBERi0xLjcKJcOkw7zDtsOf"}])])
    assert fake.requests == []


def test_one_that_keeps_its_renderer_busy_for_hours_is_given_up(model, fake, monkeypatch):
    monkeypatch.setattr("llavakit.documents.message.PAGE_SECONDS", 2.0)
    bomb = base64.b64encode(nested_forms()).decode()
    with pytest.raises(RenderError, match="took"):
        model.invoke([HumanMessage([CARRIERS["v1 base64"](bomb)])])
    assert fake.requests == []


def test_its_pages_are_counted(b64, demo_backend):
    model = ChatLLaVA(backend=demo_backend, model="demo")
    with_it = [HumanMessage([CARRIERS["v1 base64"](b64), "Read the page."])]
    without = [HumanMessage("Read the page.")]
    difference = model.get_num_tokens_from_messages(with_it) - model.get_num_tokens_from_messages(
        without
    )
    assert difference >= 3 * 64
