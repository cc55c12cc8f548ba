"""PDFs in requests: the model sees their pages, and a bomb costs its own request alone."""

import asyncio
import base64
import time

import openai
import pytest

from llavakit.documents import open_pages
from llavakit.serving import files
from tests.documents import hostile
from tests.documents.drawn import print_lines, sheet
from tests.serving.conftest import CHAT, data_uri, draw, saying

pytest.importorskip("pypdfium2")
RESPONSES = "/v1/responses"


def pdf_uri(data):
    return "data:application/pdf;base64," + base64.b64encode(data).decode()


def leaves(count):
    """A PDF of many small pages."""
    kids = " ".join(f"{number} 0 R" for number in range(3, 3 + count))
    pages = f"<< /Type /Pages /Kids [{kids}] /Count {count} >>"
    leaf = "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 72 72] /Resources << >> >>"
    return hostile.pdf(hostile.CATALOGUE, pages, *[leaf] * count)


LETTER = sheet(print_lines(["Dear reader"]))
LOCKED = sheet("").replace(b"/Root", b"/Encrypt << /Filter /Standard /V 9 >> /Root")


def in_chat(data, name="letter.pdf"):
    file = {"file_data": pdf_uri(data), "filename": name}
    return {"type": "file", "file": file}


def in_responses(data, name="letter.pdf"):
    return {"type": "input_file", "file_data": pdf_uri(data), "filename": name}


def asking(*blocks, path=CHAT):
    words = {"type": "text" if path == CHAT else "input_text", "text": "What is it?"}
    messages = [{"role": "user", "content": [*blocks, words]}]
    return {"model": "fake", "messages" if path == CHAT else "input": messages}


@pytest.mark.parametrize(("path", "block"), [(CHAT, in_chat), (RESPONSES, in_responses)])
async def test_the_model_sees_all_pages_where_the_file_stands(client, path, block):
    app = client()
    image = {"type": "image_url", "image_url": {"url": data_uri(draw())}}
    if path == RESPONSES:
        image = {"type": "input_image", "image_url": data_uri(draw())}
    answer = await app.post(path, json=asking(image, block(leaves(3)), image, path=path))
    assert answer.status_code == 200, answer.text
    (message,) = app.backend.requests[0].messages
    drawn = [page.picture for page in open_pages(leaves(3))]
    shown = [part.source for part in message.images]
    assert shown[1:4] == drawn and shown[0] == shown[4] and len(shown) == 5
    assert (app.service.gate.open, app.service.gate.bytes) == (0, 0)


async def test_bare_base64_and_a_file_without_a_name_are_taken(client):
    app = client()
    bare = base64.b64encode(LETTER).decode()
    for block in (
        {"type": "input_file", "file_data": bare, "detail": "high"},
        {"type": "file", "file": {"file_data": bare}},
    ):
        answer = await app.post(CHAT, json=asking(block))
        assert answer.status_code == 200, answer.text


@pytest.mark.enable_socket
def test_openais_client_sends_a_file_by_both_notations(served):
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
        words = {"type": "input_text", "text": "What is it?"}
        content = [in_responses(leaves(2)), words]
        answer = client.responses.create(
            model="demo", input=[{"role": "user", "content": content}], temperature=0
        )
        assert answer.status == "completed" and answer.output_text
        asked = asking(in_chat(leaves(2))) | {"model": "demo"}
        count = client.chat.completions.create(**asked, temperature=0).usage.prompt_tokens
        assert count == answer.usage.input_tokens > 2 * 64


@pytest.mark.enable_socket
def test_langchains_standard_block_of_a_file_arrives(served):
    from langchain_core.messages import HumanMessage
    from langchain_openai import ChatOpenAI

    block = {
        "type": "file",
        "base64": base64.b64encode(leaves(2)).decode(),
        "mime_type": "application/pdf",
        "filename": "two.pdf",
    }
    for responses in (False, True):
        chat = ChatOpenAI(
            model="demo",
            base_url=f"{served.url}/v1",
            api_key="any",
            temperature=0,
            use_responses_api=responses,
        )
        answer = chat.invoke([HumanMessage([block, {"type": "text", "text": "What colour?"}])])
        assert answer.usage_metadata["input_tokens"] > 2 * 64


REFUSED = {
    "damaged": (in_chat(b"%PDF-1.4 broken"), "invalid_file", "letter.pdf"),
    "encrypted": (in_chat(LOCKED), "invalid_file", "encrypt"),
    "no-pages": (in_chat(leaves(0)), "invalid_file", "letter.pdf"),
    "an-image": (
        {"type": "file", "file": {"file_data": data_uri(draw())}},
        "invalid_file",
        "send it in a block for images",
    ),
    "text": (in_chat(b"Dear reader, this is text."), "invalid_file", "send text as text"),
    "archive": (in_chat(b"PK\3\4 and more"), "invalid_file", "not a PDF"),
    "too-many-pages": (in_chat(leaves(17)), "too_many_images", "17 pages"),
    "very-many-pages": (in_chat(leaves(3000)), "too_many_images", "3000 pages"),
    "a-path": (
        {"type": "input_file", "file_url": "/etc/passwd"},
        "source_not_allowed",
        "send the file as a data URI",
    ),
    "an-address": (
        {"type": "input_file", "file_url": "http://example.com/a.pdf"},
        "source_not_allowed",
        "fetches no URLs",
    ),
    "no-source": ({"type": "input_file"}, "invalid_value", "exactly one"),
    "two-sources": (
        {"type": "input_file", "file_url": "http://a/b", "file_data": "AAAA"},
        "invalid_value",
        "exactly one",
    ),
    "stored": ({"type": "input_file", "file_id": "file-1"}, "invalid_value", "file_id"),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_what_cannot_be_drawn_is_refused_with_its_place(client, case):
    block, code, words = REFUSED[case]
    app = client()
    error = (await app.post(CHAT, json=asking(block))).json()["error"]
    assert error["code"] == code and words in error["message"], error
    assert error["param"].startswith("messages[0].content[0]")
    assert "\n" not in error["message"] and "max_pages" not in error["message"]
    assert app.backend.requests == [] and app.service.gate.bytes == 0


@pytest.mark.parametrize("block", [in_chat, in_responses])
async def test_a_stray_key_is_without_effect_or_named(client, block):
    app = client()
    hint = {"cache_control": {"type": "ephemeral"}, "id": "x", "index": 0}
    assert (await app.post(CHAT, json=asking(block(LETTER) | hint))).status_code == 200
    error = (await app.post(CHAT, json=asking(block(LETTER) | {"mood": 1}))).json()["error"]
    assert error["param"] == "messages[0].content[0].mood"


async def test_pages_of_all_files_and_images_are_counted_together(client):
    app = client(max_images=4)
    image = {"type": "image_url", "image_url": {"url": data_uri(draw())}}
    assert (await app.post(CHAT, json=asking(in_chat(leaves(3)), image))).status_code == 200
    answer = await app.post(CHAT, json=asking(in_chat(leaves(2)), in_chat(leaves(2)), image))
    assert answer.status_code == 413
    assert answer.json()["error"]["param"] == "messages[0].content[1]"
    assert "may have 1 more" in answer.json()["error"]["message"]


async def test_a_page_of_any_size_has_the_pixels_of_an_image(client):
    app = client(max_image_pixels=250_000)
    answer = await app.post(CHAT, json=asking(in_chat(hostile.page("", box="0 0 14400 14400"))))
    assert answer.status_code == 200, answer.text
    (image,) = app.backend.requests[0].messages[0].images
    assert image.source.size[0] * image.source.size[1] <= 250_000


@pytest.mark.timeout(120)
@pytest.mark.parametrize("path", [CHAT, RESPONSES])
async def test_a_bomb_ends_in_time_and_others_are_answered_meanwhile(client, monkeypatch, path):
    monkeypatch.setattr(files, "FILE_SECONDS", 2.0)
    app = client()
    block = (in_chat if path == CHAT else in_responses)(hostile.nested_forms())
    begun = time.monotonic()
    bombs = [asyncio.create_task(app.post(path, json=asking(block, path=path))) for _ in range(2)]
    await asyncio.sleep(0.5)
    image = {"type": "image_url", "image_url": {"url": data_uri(draw())}}
    assert (await app.post(CHAT, json=asking(image))).status_code == 200
    assert not any(bomb.done() for bomb in bombs)
    for bomb in bombs:
        error = (await bomb).json()["error"]
        assert error["code"] == "file_too_large" and "2 seconds" in error["message"], error
    assert time.monotonic() - begun < 60
    assert (app.service.gate.open, app.service.gate.bytes) == (0, 0)


async def test_tokens_of_a_file_are_counted(client):
    app = client()
    messages = asking(in_chat(leaves(2)))["messages"]
    answer = await app.post("/tokenize", json={"messages": messages})
    assert answer.status_code == 200 and answer.json()["count"] > 0
    assert (await app.post(CHAT, json=saying())).status_code == 200
