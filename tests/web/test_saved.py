"""Conversations leave the page as files and come back, and only to the tab that they belong to."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image as Pixels

from llavakit.errors import InputError
from llavakit.images import open_picture
from llavakit.testing import FakeBackend
from llavakit.values import Image, Usage
from llavakit.web.catalog import ListedModel
from llavakit.web.controller import Controller
from llavakit.web.conversation import AnswerStage, ShownAnswer, WebConversation
from llavakit.web.guard import COOKIE, Guard
from llavakit.web.model_cache import ModelCache
from llavakit.web.pictures import AttachedImage, Uploads, shown_picture
from llavakit.web.settings import WebSettings
from llavakit.web.transcript import from_json, to_json, to_markdown

SETTINGS = WebSettings(max_turns=3, max_images=2, max_text=200, max_pixels=10_000)
PATH = "/llavakit/chat"


def image_file(colour: str = "red", kind: str = "PNG", size: int = 40) -> bytes:
    file = io.BytesIO()
    Pixels.new("RGB", (size, size), colour).save(file, kind)
    return file.getvalue()


def attached(data: bytes, name: str = "a [b].png") -> AttachedImage:
    return shown_picture(data, name, SETTINGS.policy(Path("/")))


def conversation() -> WebConversation:
    """One answered question about two images, a document's page among them, and a failed one."""
    page = open_picture(image_file("blue"))
    drawn = AttachedImage("x.pdf, page 2", Image(page), page.digest, "data:,", 3 * 40 * 40)
    made = WebConversation()
    turn = made.ask("What\nis this?", [attached(image_file()), drawn], ["Only 1 page was taken."])
    turn.answer = ShownAnswer("red", AnswerStage.DONE, model="demo", usage=Usage(7, 2, 1, 4))
    made.fail("And this?", "x.png: it is damaged.")
    return made


def test_a_chat_comes_back_as_it_was() -> None:
    before = conversation()
    turns = from_json(to_json(before).encode(), SETTINGS)
    assert [turn.text for turn in turns] == ["What\nis this?", "And this?"]
    assert [turn.answer for turn in turns] == [turn.answer for turn in before.turns]
    assert turns[0].notes == before.turns[0].notes
    for old, new in zip(before.turns[0].pictures, turns[0].pictures, strict=True):
        assert (old.name, old.digest) == (new.name, new.digest)


def test_images_that_the_browser_has_are_sent_by_their_digest_alone() -> None:
    made = conversation()
    first, second = made.turns[0].pictures
    [turn, _] = json.loads(to_json(made, known={first.digest}))["turns"]
    assert turn["images"][0] == {"name": first.name, "digest": first.digest}
    assert turn["images"][1]["digest"] == second.digest
    assert turn["images"][1]["data"].startswith("data:image/png;base64,")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_images_are_saved_in_a_format_that_browsers_show(kind: str) -> None:
    made = WebConversation()
    made.ask("What is this?", [attached(image_file(kind=kind))])
    [turn] = json.loads(to_json(made))["turns"]
    head, _, data = turn["images"][0]["data"].partition(",")
    shown = "PNG" if kind == "BMP" else kind
    assert head == f"data:image/{shown.lower()};base64"
    assert Pixels.open(io.BytesIO(base64.b64decode(data))).format == shown


def test_markdown_holds_questions_answers_and_images() -> None:
    text = to_markdown(conversation())
    assert "![a \\[b\\].png](data:image/png;base64," in text
    assert "> What\n> is this?" in text
    assert "## Answer 1 (demo)\n\nred" in text
    assert "*x.png: it is damaged.*" in text


@pytest.mark.parametrize(
    "said", ["![x](http://host.invalid/a.png)", "<img src=http://host.invalid/b.png>"]
)
def test_markdown_of_an_answer_fetches_nothing(said: str) -> None:
    made = WebConversation()
    made.ask(said).answer = ShownAnswer(said, AnswerStage.DONE)
    text = to_markdown(made)
    assert "host.invalid" in text
    assert "<img" not in text
    assert "![x]" not in text.replace("!\\[x]", "")


def test_an_answer_on_its_way_is_saved_as_far_as_it_is() -> None:
    made = WebConversation()
    made.ask("Talk.").answer = ShownAnswer("aa", AnswerStage.WRITING)
    [turn] = from_json(to_json(made).encode(), SETTINGS)
    assert (turn.answer.text, turn.answer.stage) == ("aa", AnswerStage.STOPPED)


def saved(**turn: Any) -> bytes:
    record = {"question": "What?", "answer": "red", "ended": "done", **turn}
    return json.dumps({"format": "llavakit-chat", "version": 1, "turns": [record]}).encode()


def data_uri(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


@pytest.mark.parametrize(
    ("forged", "reason"),
    [
        (b"\xff", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "format"),
        (b'{"format": "llavakit-chat", "version": 2}', "version"),
        (b'{"format": "llavakit-chat", "version": 1, "turns": {}}', "not a list"),
        (b'{"format": "llavakit-chat", "version": 1, "turns": [1]}', "not an object"),
        (b'{"format": "llavakit-chat", "version": 1, "turns": [{},{},{},{}]}', "3 questions"),
        (saved(question=" "), "no words"),
        (saved(question=["a"]), "not a text"),
        (saved(question="a" * 201), "200 characters"),
        (saved(answer="a" * 2001), "2000 characters"),
        (saved(images=[{"data": data_uri(image_file())}] * 3), "2 images"),
        (saved(images=["/etc/passwd"]), "not an object"),
        (saved(images=[{"name": "a.png"}]), "data of a.png is missing"),
        (saved(images=[{"name": "a.png", "data": "/etc/passwd"}]), "is missing"),
        (saved(images=[{"name": "a.png", "data": "file:///etc/passwd"}]), "is missing"),
        (saved(images=[{"name": "a.png", "data": "http://host.invalid/a.png"}]), "is missing"),
        (saved(images=[{"name": "a.png", "data": "data:image/png;base64,%"}]), "not base64"),
        (saved(images=[{"name": "a.png", "data": data_uri(b"no image")}]), "a.png: "),
        (saved(images=[{"name": "a.png", "data": data_uri(image_file(size=200))}]), "0.01 million"),
    ],
)
def test_a_forged_chat_is_refused_with_a_sentence(forged: bytes, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        from_json(forged, SETTINGS)


def test_images_of_all_questions_together_have_a_limit() -> None:
    data = image_file()
    small = WebSettings(max_kept_bytes=len(data))
    images = [{"name": "a.png", "data": data_uri(data)}]
    assert len(from_json(saved(images=images), small)) == 1
    with pytest.raises(InputError, match="so many images"):
        from_json(saved(images=images * 2), small)


@pytest.mark.parametrize(
    "figures", [{"prompt_tokens": -1}, {"prompt_tokens": "7"}, {"prompt_tokens": True}, [], 7]
)
def test_figures_without_sense_are_left_out(figures: Any) -> None:
    [turn] = from_json(saved(usage=figures, writing=float("nan"), cut="yes"), SETTINGS)
    assert (turn.answer.usage, turn.answer.writing, turn.answer.cut) == (None, 0.0, False)


@pytest.fixture
def controller(tmp_path: Path) -> Controller:
    settings = WebSettings(max_saved_bytes=50_000)
    models = ModelCache([ListedModel("fake", "fake")], 1, lambda name: FakeBackend())
    return Controller(settings, models, Uploads(tmp_path, settings))


@pytest.fixture
async def client(controller: Controller, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    async def nothing(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError("The framework was asked.")

    guard: Any = Guard(nothing, controller, tmp_path)
    transport = httpx.ASGITransport(app=guard)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost:7860") as client:
        yield client


def arrive(controller: Controller, tab: str, owner: str) -> dict[str, str]:
    """A tab is opened; what its requests show."""
    controller.visitors.came(tab, owner)
    visit = controller.visitors.enter(tab, "")
    return {"x-llavakit-visit": visit.token, "cookie": f"{COOKIE}={owner}"}


async def test_a_tab_saves_its_chat_and_opens_it_again(
    client: httpx.AsyncClient, controller: Controller
) -> None:
    mine = arrive(controller, "tab", "me")
    visit = controller.visitors.of("tab")
    visit.conversation.replace(conversation().turns)
    answer = await client.get(PATH, headers=mine)
    assert answer.headers["cache-control"] == "no-store"
    assert (await client.get(f"{PATH}?form=md", headers=mine)).text.startswith("# A chat")
    assert (await client.get(f"{PATH}?form=exe", headers=mine)).status_code == 400

    controller.clear(visit)
    opened = await client.post(PATH, content=answer.content, headers=mine)
    assert opened.json() == {"id": visit.conversation.name}
    assert visit.conversation.name != answer.json()["id"]
    assert [turn.text for turn in visit.conversation.turns] == ["What\nis this?", "And this?"]


async def test_nobody_else_gets_a_chat(client: httpx.AsyncClient, controller: Controller) -> None:
    mine = arrive(controller, "tab", "me")
    theirs = arrive(controller, "other", "them")
    controller.visitors.of("tab").conversation.replace(conversation().turns)
    for headers in (
        {},
        {"cookie": mine["cookie"]},
        {"x-llavakit-visit": mine["x-llavakit-visit"]},
        {**mine, "cookie": theirs["cookie"]},
        {**mine, "x-llavakit-visit": "\u00e9".encode("latin-1").decode("latin-1")},
    ):
        raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
        assert (await client.get(PATH, headers=raw)).status_code == 404
        assert (await client.post(PATH, headers=raw, content=saved())).status_code == 404
    foreign = {**mine, "sec-fetch-site": "cross-site"}
    assert (await client.get(PATH, headers=foreign)).status_code == 403
    assert (await client.get(PATH, headers=theirs)).json()["turns"] == []


async def test_a_saved_chat_has_a_length_and_a_limit(
    client: httpx.AsyncClient, controller: Controller
) -> None:
    mine = arrive(controller, "tab", "me")

    async def chunks() -> AsyncIterator[bytes]:
        yield saved()

    assert (await client.post(PATH, headers=mine, content=chunks())).status_code == 411
    assert (await client.post(PATH, headers=mine, content=bytes(50_001))).status_code == 413
    refused = await client.post(PATH, headers=mine, content=b"{}")
    assert refused.status_code == 400 and refused.text.startswith("This is not a saved chat")
    assert (await client.post(PATH, headers=mine, content=saved())).status_code == 200


async def test_a_chat_is_not_replaced_while_an_answer_comes(
    client: httpx.AsyncClient, controller: Controller
) -> None:
    mine = arrive(controller, "tab", "me")
    controller.visitors.of("tab").opening = True
    refused = await client.post(PATH, headers=mine, content=saved())
    assert refused.status_code == 400 and "on its way" in refused.text
